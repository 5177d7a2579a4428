"""Pulls by the real huggingface_hub client from a hub on this machine.

Every pull runs in a process of its own, because huggingface_hub reads its settings when imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from hub_server import COMMIT, Hub, serving
from powerserve.core.errors import DownloadError
from powerserve.storage.hub import pull, pull_folder
from powerserve.storage.store import ModelStore

REPO = "owner/Tiny-GGUF"
Q4 = b"GGUF" + b"\4" * 300_000
Q8 = b"GGUF" + b"\10" * 700_000
FILES = {"README.md": b"# Tiny", "Tiny-Q4_K_M.gguf": Q4, "Tiny-Q8_0.gguf": Q8}
SHARDS = [f"Q8_0/Big-Q8_0-0000{n}-of-00002.gguf" for n in (1, 2)]


@pytest.fixture
def hub() -> Iterator[Hub]:
    big = dict(zip(SHARDS, (Q8, Q4), strict=True))
    raw = {"model.safetensors": b"x"}
    with serving(Hub({REPO: dict(FILES), "owner/big": big, "owner/raw": raw})) as hub:
        yield hub


@dataclass
class Machine:
    """A user's machine: a home of its own, and the command line with its environment."""

    home: Path
    url: str

    @property
    def store(self) -> ModelStore:
        return ModelStore(self.home / "store" / "models")

    @property
    def cache(self) -> Path:
        return self.home / "hf" / "hub"

    def blobs(self) -> list[Path]:
        return sorted(self.cache.glob("models--*/blobs/*"))

    def run(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "POWERSERVE_"))}
        environment = keep | {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(self.home / "hf"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "POWERSERVE_HOME": str(self.home / "store"),
            "NO_PROXY": "127.0.0.1,localhost",
        }
        program = "import sys; from powerserve.cli.main import main; sys.exit(main())"
        return subprocess.run(
            [sys.executable, "-c", program, *words],
            env=environment | variables,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def ok(self, *words: str, **variables: str) -> str:
        done = self.run(*words, **variables)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refused(self, *words: str, **variables: str) -> str:
        """The one sentence of a command that fails as it should."""
        done = self.run(*words, **variables)
        assert done.returncode == 2, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr.strip().splitlines()[-1]


@pytest.fixture
def machine(tmp_path: Path, hub: Hub) -> Machine:
    return Machine(tmp_path, hub.url)


def file_gets(hub: Hub) -> list[str]:
    return [line for line in hub.requests if line.startswith("GET") and "/resolve/" in line]


def test_a_pull_fetches_the_usual_file_into_the_hubs_own_cache(machine: Machine, hub: Hub) -> None:
    out = machine.ok("pull", REPO)
    path = machine.store.find("Tiny-Q4_K_M")
    assert path is not None and str(path) in out
    assert path.read_bytes() == Q4
    snapshot = machine.cache / "models--owner--Tiny-GGUF" / "snapshots" / COMMIT
    assert path == snapshot / "Tiny-Q4_K_M.gguf"
    assert [blob.name for blob in machine.blobs()] == [hashlib.sha256(Q4).hexdigest()]
    ref = machine.cache / "models--owner--Tiny-GGUF" / "refs" / "main"
    assert ref.read_text() == COMMIT  # so that other programs find it offline

    again = len(file_gets(hub))
    machine.ok("pull", f"https://huggingface.co/{REPO}", "--name", "other")
    assert len(file_gets(hub)) == again, "a cached file was fetched again"


def test_quantisation_name_and_revision_are_obeyed(machine: Machine) -> None:
    machine.ok("pull", f"hf.co/{REPO}:q8_0", "--name", "eight", "--revision", COMMIT)
    entry = machine.store.entry("eight")
    assert entry is not None and entry.origin is not None
    assert entry.path.read_bytes() == Q8
    assert (entry.origin.revision, entry.origin.commit) == (COMMIT, COMMIT)


def test_all_shards_are_fetched_and_the_first_is_the_model(machine: Machine) -> None:
    machine.ok("pull", "owner/big:Q8_0")
    entry = machine.store.entry("Big-Q8_0")
    assert entry is not None
    assert [Path(file.path).read_bytes() for file in entry.files] == [Q8, Q4]
    assert entry.path.name == "Big-Q8_0-00001-of-00002.gguf"


def test_a_cut_connection_is_continued_at_once(machine: Machine, hub: Hub) -> None:
    hub.cut_after_bytes = [100_000, 50_000]
    machine.ok("pull", REPO)
    assert [line.partition("bytes=")[2] for line in file_gets(hub)] == ["", "100000-", "150000-"]


def test_what_arrived_before_giving_up_is_kept_for_the_next_command(
    machine: Machine, hub: Hub
) -> None:
    hub.cut_after_bytes = [100_000, 0, 0, 0, 0]
    sentence = machine.refused("pull", REPO)
    assert "the connection was cut" in sentence and "100 kB of 300 kB are kept" in sentence
    assert machine.store.entries() == ()
    hub.requests.clear()
    machine.ok("pull", REPO)
    assert [line.partition("bytes=")[2] for line in file_gets(hub)] == ["100000-"]
    assert machine.store.entries()[0].path.read_bytes() == Q4


def test_a_wrong_checksum_discards_the_file(machine: Machine, hub: Hub) -> None:
    hub.corrupt = True
    assert "arrived damaged" in machine.refused("pull", REPO)
    assert machine.blobs() == []
    assert machine.store.entries() == ()


def test_the_token_is_sent_to_the_hub_and_not_to_its_cdn(machine: Machine, hub: Hub) -> None:
    hub.token, hub.redirect = "hf_secret", True
    machine.ok("pull", REPO, HF_TOKEN="hf_secret")
    assert {header for path, header in hub.authorizations if path.startswith("/cdn/")} == {None}
    assert machine.store.entries()[0].path.read_bytes() == Q4


def test_a_gated_repository_says_how_to_get_in(machine: Machine, hub: Hub) -> None:
    hub.token, hub.gated = "hf_secret", True
    sentence = machine.refused("pull", REPO)
    assert "gated" in sentence and "HF_TOKEN" in sentence and f"{hub.url}/{REPO}" in sentence


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["owner/none"], "there is no repository owner/none"),
        ([REPO, "--revision", "v9"], "has no revision 'v9'"),
        ([f"{REPO}:Q2_K"], "has no Q2_K; choose one as owner/Tiny-GGUF:NAME"),
        ([f"{REPO}:none.gguf"], "has no none.gguf"),
        (["owner/raw"], "no GGUF file"),
        ([REPO, "--name", "../x"], "cannot be a model's name"),
        ([REPO, "--name", "default"], "the name of a built-in model"),
        (["Tiny"], "does not name a model"),
    ],
)
def test_what_cannot_be_pulled_gets_one_sentence(
    machine: Machine, words: list[str], expected: str
) -> None:
    assert expected in machine.refused("pull", *words)
    assert machine.blobs() == []


@pytest.mark.parametrize(
    ("status", "expected"), [(403, "HF_TOKEN"), (429, "slow down"), (500, "500")]
)
def test_a_hub_that_refuses_gets_one_sentence(
    machine: Machine, hub: Hub, status: int, expected: str
) -> None:
    hub.status = status
    assert expected in machine.refused("pull", REPO)


def test_a_refused_connection_names_the_settings(machine: Machine) -> None:
    sentence = machine.refused("pull", REPO, HF_ENDPOINT="http://127.0.0.1:9")
    assert "cannot be reached" in sentence and "HF_ENDPOINT" in sentence


def test_offline_uses_the_cache_and_nothing_else(machine: Machine, hub: Hub) -> None:
    sentence = machine.refused("pull", REPO, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE" in sentence
    machine.ok("pull", REPO)
    machine.ok("rm", "Tiny-Q4_K_M", "--keep-files")
    hub.requests.clear()
    machine.ok("pull", REPO, HF_HUB_OFFLINE="1")
    assert hub.requests == []
    assert machine.store.entries()[0].path.read_bytes() == Q4


def test_a_store_that_cannot_be_written_is_noticed_before_the_download(
    machine: Machine, hub: Hub
) -> None:
    (machine.home / "store").write_text("a file where the folder should be")
    assert "POWERSERVE_HOME" in machine.refused("pull", REPO)
    assert hub.requests == []


def test_two_pulls_at_once_fetch_the_file_once(machine: Machine, hub: Hub) -> None:
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda name: machine.ok("pull", REPO, "--name", name), ("one", "two")))
    assert len(file_gets(hub)) == 1
    assert [entry.name for entry in machine.store.entries()] == ["one", "two"]


def test_removing_frees_what_no_other_model_uses(machine: Machine) -> None:
    machine.ok("pull", REPO, "--name", "a")
    machine.ok("pull", REPO, "--name", "b")
    machine.ok("pull", f"{REPO}:Q8_0", "--name", "c")
    assert "0 B freed" in machine.ok("rm", "a")
    assert len(machine.blobs()) == 2
    machine.ok("rm", "b")
    assert [blob.read_bytes() for blob in machine.blobs()] == [Q8]
    machine.ok("rm", "c")
    assert machine.blobs() == []
    assert not list(machine.cache.glob("models--*"))


def test_removing_leaves_files_of_other_programs(machine: Machine, hub: Hub) -> None:
    program = f"import huggingface_hub as h; h.hf_hub_download({REPO!r}, 'README.md')"
    machine.ok("pull", REPO)
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(machine.home / "hf")}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    machine.ok("rm", "Tiny-Q4_K_M")
    assert [blob.read_bytes() for blob in machine.blobs()] == [FILES["README.md"]]


def test_the_list_tells_the_source_and_deleted_files(machine: Machine) -> None:
    machine.ok("pull", REPO)
    (told,) = json.loads(machine.ok("list", "--json"))
    assert told["source"] == f"{REPO}:Tiny-Q4_K_M.gguf"
    assert (told["quantisation"], told["size_bytes"], told["complete"]) == ("Q4_K_M", len(Q4), True)
    machine.blobs()[0].unlink()
    assert "file deleted" in machine.ok("list")
    sentence = machine.refused("show", "Tiny-Q4_K_M")
    assert f"powerserve pull {REPO}:Tiny-Q4_K_M.gguf" in sentence
    machine.ok("pull", REPO)
    assert "file deleted" not in machine.ok("list")


def test_an_interrupted_pull_is_continued(machine: Machine, hub: Hub) -> None:
    """Ctrl-C while waiting for data leaves what arrived."""
    hub.cut_after_bytes = [100_000] + [0] * 9
    popen = _background(machine)
    partial = hashlib.sha256(Q4).hexdigest() + ".partial"
    _wait_until(lambda: len(file_gets(hub)) >= 2)
    time.sleep(0.1)
    popen.send_signal(signal.SIGINT)
    assert popen.wait(20) == 130
    assert [blob.name for blob in machine.blobs()] == [partial]
    hub.cut_after_bytes.clear()
    hub.requests.clear()
    machine.ok("pull", REPO)
    assert [line.partition("bytes=")[2] for line in file_gets(hub)] == ["100000-"]


def _background(machine: Machine) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "HF_ENDPOINT": machine.url,
        "HF_HOME": str(machine.home / "hf"),
        "POWERSERVE_HOME": str(machine.home / "store"),
    }
    program = "import sys; from powerserve.cli.main import main; sys.exit(main())"
    return subprocess.Popen([sys.executable, "-c", program, "pull", "-q", REPO], env=environment)


def _wait_until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def test_without_the_hub_client_the_way_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in bundles for devices."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DownloadError, match="huggingface_hub, which is not installed"):
        pull(REPO, ModelStore(tmp_path))
    with pytest.raises(DownloadError, match="huggingface_hub, which is not installed"):
        pull_folder(REPO)
