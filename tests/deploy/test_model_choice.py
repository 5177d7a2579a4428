"""What the user calls a model, and what the phone gets for it; NPU models from a hub here."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from command_line import PROGRAM, status_of
from deploy.fake_phone.phone import FakePhone, PhoneSettings, PlugIn
from deploy.stand_in import write_bundle
from hub_server import Hub, serving
from model_folders import write_model_folder
from powerserve.backend.qnn.soc import load_socs
from powerserve.core.errors import UsageError
from powerserve.deploy.model_choice import Wish, choose_models
from powerserve.deploy.model_table import load_model_table
from powerserve.deploy.npu import find_npu
from powerserve.storage.progress import SILENT
from powerserve.tokenizer.known_templates import template_names

ECHO = 'printf "%s|" "$LD_LIBRARY_PATH" "$ADSP_LIBRARY_PATH" "$@"\n'
SNAPDRAGON = {"ro.soc.model": "SM8650", "ro.board.platform": "pineapple"}
MODELS = "/data/local/tmp/powerserve/workspace"
NPU_FOLDER = "/data/local/tmp/powerserve/qnn_libs"
ORIGINALS = (
    *("smallthinker-3b", "llama-3.1-8b", "llama-3.2-1b", "qwen-2.5-3b", "qwen-2-0.5b"),
    *("internlm-3-8b", "deepseek-r1-llama-8b"),
)


def files_of(folder: Path) -> dict[str, bytes]:
    (folder / "qnn").mkdir()
    (folder / "qnn/config.json").write_text("{}")
    (folder / "qnn/chunk.bin").write_bytes(b"compiled")
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """Llama 3.1 8B and its draft as the table names them, but tiny."""
    main = files_of(write_model_folder(tmp_path / "main", "main"))
    draft = files_of(write_model_folder(tmp_path / "draft", "draft"))
    repos = {
        f"PowerServe/{name}-QNN29-{soc}": files
        for soc in ("8G3", "8G4")
        for name, files in (
            ("Llama-3.1-8B-PowerServe", main),
            ("Llama-3.1-8B-PowerServe-Speculate", main),
            ("Llama-3.2-1B-PowerServe", draft),
        )
    }
    with serving(Hub(repos)) as hub:
        yield hub


def deploy_run(
    hub: Hub, home: Path, *words: str, bundle: Path | None = None, **variables: str
) -> tuple[list[str], str]:
    """The words that the program on the phone got, and what was said about it."""
    bundle = bundle or write_bundle(home / "echo.tar.gz", ECHO)
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1,localhost",
    }
    done = subprocess.run(
        [*PROGRAM, "deploy", "run", *map(str, words), "--bundle", str(bundle)],
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("|"), done.stderr


def names_on(phone: FakePhone, folder: str) -> set[str]:
    place = phone.data / folder.removeprefix("/data/")
    return {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}


def make_sdk(folder: Path) -> Path:
    library = folder / "lib/aarch64-android/libQnnHtp.so"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"library")
    return folder


def test_a_name_of_the_table_runs_on_the_cpu_of_any_phone(
    hub: Hub, phone: FakePhone, tmp_path: Path
) -> None:
    words, told = deploy_run(hub, tmp_path, "llama-3.1-8b")
    name = "Llama-3.1-8B-PowerServe-QNN29-8G4"
    assert words[:5] == ["", "", "run", "--model", f"{MODELS}/{name}"]
    assert words[5] == "--no-qnn"
    assert words[-3:-1] == ["--chat-template", "llama3"]
    assert "the CPU is used: no models are compiled for this device's SoC" in told
    assert "ggml/weights.gguf" in names_on(phone, f"{MODELS}/{name}")
    assert not any("chunk.bin" in request for request in hub.requests)
    num_requests = len(hub.requests)
    assert deploy_run(hub, tmp_path, "llama-3.1-8b", HF_HUB_OFFLINE="1")[0][4] == words[4]
    assert len(hub.requests) == num_requests


def test_an_npu_gets_its_own_files_libraries_and_variables(
    hub: Hub, plug_in: PlugIn, tmp_path: Path
) -> None:
    phone = plug_in(PhoneSettings(properties=SNAPDRAGON))
    bundle = write_bundle(tmp_path / "npu.tar.gz", ECHO, helper=True)
    sdk = {"QNN_SDK_ROOT": str(make_sdk(tmp_path / "sdk"))}
    words, told = deploy_run(hub, tmp_path, "llama-3.1-8b", "-s", bundle=bundle, **sdk)
    assert words[0] == f"{NPU_FOLDER}:/system/lib64:/vendor/lib64"
    assert words[1].split(";")[0] == NPU_FOLDER
    main = f"{MODELS}/Llama-3.1-8B-PowerServe-Speculate-QNN29-8G3"
    draft = f"{MODELS}/Llama-3.2-1B-PowerServe-QNN29-8G3"
    assert words[3:10] == [
        *("--model", main, "--use-spec", "--draft-model", draft, "--lib-folder", NPU_FOLDER),
    ]
    assert "the CPU is used" not in told
    assert "qnn/chunk.bin" in names_on(phone, main) & names_on(phone, draft)
    assert "libQnnHtp.so" in names_on(phone, NPU_FOLDER)


def test_what_the_npu_lacks_is_said_in_one_line(hub: Hub, plug_in: PlugIn, tmp_path: Path) -> None:
    plug_in(PhoneSettings(properties=SNAPDRAGON))
    words, told = deploy_run(hub, tmp_path, "llama-3.1-8b")
    assert words[4].endswith("-8G4")  # what the CPU takes, whatever the SoC
    assert [line for line in told.splitlines() if line.startswith("the CPU is used")] == [
        "the CPU is used: QNN_SDK_ROOT is not set, so Qualcomm's libraries are missing"
    ]
    words, told = deploy_run(hub, tmp_path, "llama-3.1-8b", "-c")
    assert "--no-qnn" in words
    assert "the CPU is used" not in told


def test_obstacles_of_the_npu(tmp_path: Path) -> None:
    sdk = str(make_sdk(tmp_path / "sdk"))
    empty = tmp_path / "empty"
    empty.mkdir()
    plain = write_bundle(tmp_path / "plain.tar.gz", ECHO)
    complete = write_bundle(tmp_path / "complete.tar.gz", ECHO, helper=True)
    assert "this device's SoC" in find_npu(None, sdk, complete).obstacle
    assert "QNN_SDK_ROOT is not set" in find_npu("8G3", None, complete).obstacle
    assert "there are no QNN libraries in" in find_npu("8G3", str(empty), complete).obstacle
    assert "the bundle has no NPU helper, which --ndk" in find_npu("8G3", sdk, plain).obstacle
    assert find_npu("8G3", sdk, complete).obstacle == ""
    plain.write_bytes(b"no archive")
    with pytest.raises(UsageError, match=r"the bundle .* cannot be read"):
        find_npu("8G3", sdk, plain)


def test_model_folders_and_workspaces_are_deployed_without_npu_files(
    tmp_path: Path, phone: FakePhone, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = write_model_folder(tmp_path / "my model")
    files_of(folder)
    bundle = write_bundle(tmp_path / "echo.tar.gz", ECHO)
    assert status_of("deploy", "run", folder, "--bundle", bundle) == 0
    assert "the CPU is used" in capfd.readouterr().err
    names = names_on(phone, f"{MODELS}/my model")
    assert "ggml/weights.gguf" in names
    assert "qnn/chunk.bin" not in names


def test_the_table_is_the_originals() -> None:
    table = load_model_table()
    assert set(table.models) == set(ORIGINALS)
    assert {part: name for part, name in table.socs.items()} == {"SM8650": "8G3", "SM8750": "8G4"}
    assert set(table.socs) <= {soc.part for soc in load_socs()}
    assert table.cpu in table.socs.values()
    assert {model.template for model in table.models.values()} <= set(template_names())
    with_draft = {name for name, model in table.models.items() if model.draft}
    assert with_draft == {"smallthinker-3b", "llama-3.1-8b", "deepseek-r1-llama-8b"}
    for model in table.models.values():
        for repo in filter(None, (model.repo, model.speculate, model.draft)):
            assert repo.startswith("PowerServe/")
            assert repo.endswith("-QNN29-{soc}")


def test_a_workspaces_draft_comes_along_only_when_asked_for(tmp_path: Path) -> None:
    for name in ("big", "small"):
        write_model_folder(tmp_path / "workspace" / name, name)
    settings = {"model_main": "big", "model_draft": "small"}
    (tmp_path / "workspace/workspace.json").write_text(json.dumps(settings))
    wish = Wish(str(tmp_path / "workspace"))
    chosen = choose_models(wish, SILENT)
    assert (chosen.main.name, chosen.draft) == ("big", None)
    chosen = choose_models(Wish(wish.model, speculate=True), SILENT)
    assert chosen.draft is not None
    assert chosen.draft.name == "small"
