"""`create` builds a workspace whole or not at all, out of folders and GGUF files."""

import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path, PurePath

import pytest
from gguf import GGUFReader

from model_folders import write_model_folder
from powerserve.core.errors import ConfigError, ModelFileError, UsageError
from powerserve.storage import copying, create
from powerserve.storage.copying import FileCopy, copy_files, files_below
from powerserve.storage.create import WorkspacePlan, create_workspace
from powerserve.storage.gguf import GGUFFile
from powerserve.storage.launchers import launcher
from powerserve.storage.model_contents import (
    ModelContents,
    content_id,
    contents_of_folder,
    contents_of_gguf,
)
from powerserve.storage.qnn_libs import copy_qnn_libs
from powerserve.storage.resolve import resolve_model
from privileges import permissions_apply
from stop_after import StopAfter
from tiny_models import TinyModel, write_tiny_model


def tree(folder: Path) -> dict[str, bytes]:
    """Content by relative path, without the lock that `create` leaves."""
    files = (path for path in folder.rglob("*") if path.is_file())
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    found.pop(create.LOCK_FILE, None)
    return found


def model(folder: Path, model_id: str, weights: bytes = b"GGUF and weights") -> ModelContents:
    return contents_of_folder(write_model_folder(folder, model_id, weights))


@pytest.fixture
def always_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(create, "SHOWN_FROM_BYTES", 0)


def test_a_workspace_with_main_draft_and_others(tmp_path: Path) -> None:
    parts = [model(tmp_path / "from" / name, name) for name in ("my big", "small", "thïrd")]
    (parts[0].origin / "qnn/kv").mkdir(parents=True)
    (parts[0].origin / "qnn/kv/layer_0_key_0.raw").write_bytes(b"kv")
    folder = tmp_path / "wörk 'space' $HOME"
    main = contents_of_folder(parts[0].origin)
    workspace = create_workspace(folder, WorkspacePlan(main, parts[1], (parts[2],)))
    assert workspace.main_model == folder / "my big"
    assert workspace.draft_model == folder / "small"
    found = tree(folder)
    for part in parts:
        for place, content in tree(part.origin).items():
            assert found.pop(f"{part.name}/{place}") == content
    assert sorted(found) == ["hparams.json", "workspace.json"]
    assert json.loads(found["workspace.json"]) == {
        "executables": "bin",
        "hparams_config": "hparams.json",
        "model_main": "my big",
        "model_draft": "small",
    }
    assert resolve_model(folder).draft is not None
    assert (folder / "bin").is_dir()


def test_an_existing_workspace_is_updated(tmp_path: Path) -> None:
    folder = tmp_path / "proj"
    first = WorkspacePlan(model(tmp_path / "1/m", "1"), model(tmp_path / "1/d", "2"))
    create_workspace(folder, first)
    (folder / "hparams.json").write_text('{"n_threads": 99}')
    (folder / "m/stale").write_text("")
    (folder / "bin/mine").write_text("")
    create_workspace(folder, WorkspacePlan(model(tmp_path / "2/m", "3", b"GGUF new")))
    assert (folder / "m/ggml/weights.gguf").read_bytes() == b"GGUF new"
    assert not (folder / "m/stale").exists()
    assert (folder / "d/model.json").exists()
    assert (folder / "bin/mine").exists()
    assert json.loads((folder / "hparams.json").read_text())["sampler"]["top_k"] == 1
    assert json.loads((folder / "workspace.json").read_text())["model_draft"] == ""


def test_a_model_that_is_in_the_workspace_already_stays_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "proj"
    create_workspace(folder, WorkspacePlan(model(tmp_path / "m", "1")))
    inode = (folder / "m/model.json").stat().st_ino
    create_workspace(folder, WorkspacePlan(contents_of_folder(folder / "m")))
    assert (folder / "m/model.json").stat().st_ino == inode


@pytest.mark.usefixtures("always_shown")
@pytest.mark.parametrize("after", [0, 16, 400])
def test_ctrl_c_leaves_no_trace_of_a_new_workspace(tmp_path: Path, after: int) -> None:
    plan = WorkspacePlan(model(tmp_path / "m", "1"), model(tmp_path / "d", "2", bytes(400)))
    with pytest.raises(KeyboardInterrupt):
        create_workspace(tmp_path / "proj", plan, StopAfter(after))
    assert tree(tmp_path / "proj") == {}
    assert not (tmp_path / "proj/m").exists()


@pytest.mark.usefixtures("always_shown")
def test_ctrl_c_leaves_an_existing_workspace_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "proj"
    create_workspace(
        folder, WorkspacePlan(model(tmp_path / "1/m", "1"), model(tmp_path / "1/d", "2"))
    )
    before = tree(folder)
    plan = WorkspacePlan(
        model(tmp_path / "2/m", "3", b"GGUF other"), model(tmp_path / "2/d", "4", bytes(999))
    )
    with pytest.raises(KeyboardInterrupt):
        create_workspace(folder, plan, StopAfter(500))
    assert tree(folder) == before


def test_a_kill_leaves_no_workspace_and_the_next_create_cleans_up(tmp_path: Path) -> None:
    source = write_model_folder(tmp_path / "m", "1", bytes(1 << 20))
    folder = tmp_path / "proj"
    script = textwrap.dedent("""
        import os, signal, sys
        from contextlib import contextmanager
        from pathlib import Path
        from powerserve.storage import copying, create
        from powerserve.storage.model_contents import contents_of_folder
        from powerserve.storage.progress import Silent

        class Kill(Silent):
            @contextmanager
            def transfer(self, label, total_bytes, done_bytes):
                yield lambda num_bytes: os.kill(os.getpid(), signal.SIGKILL)

        copying.BLOCK_BYTES = 1 << 16
        create.SHOWN_FROM_BYTES = 0
        plan = create.WorkspacePlan(contents_of_folder(Path(sys.argv[1])))
        create.create_workspace(Path(sys.argv[2]), plan, Kill())
    """)
    status = subprocess.run([sys.executable, "-c", script, source, folder]).returncode
    assert status == -signal.SIGKILL
    assert not (folder / "workspace.json").exists()
    assert not (folder / "m").exists()
    assert any(path.name.endswith(".partial") for path in folder.rglob("*"))
    create_workspace(folder, WorkspacePlan(contents_of_folder(source)))
    assert not any(path.name.endswith(".partial") for path in folder.rglob("*"))
    assert tree(folder / "m") == tree(source)


def test_models_with_one_id_are_refused(tmp_path: Path) -> None:
    plan = WorkspacePlan(model(tmp_path / "m", "same"), model(tmp_path / "d", "same"))
    with pytest.raises(UsageError, match=r"main model .*m and the draft model .*d have the same"):
        create_workspace(tmp_path / "proj", plan)
    assert not (tmp_path / "proj").exists()


def test_names_that_cannot_stand_side_by_side_are_refused(tmp_path: Path) -> None:
    twins = WorkspacePlan(model(tmp_path / "1/m", "1"), model(tmp_path / "2/m", "2"))
    with pytest.raises(UsageError, match="would both become the folder `m`"):
        create_workspace(tmp_path / "proj", twins)
    for name in ("bin", "qnn_libs", ".hidden"):
        with pytest.raises(UsageError, match=f"cannot be called `{name}`"):
            create_workspace(tmp_path / "proj", WorkspacePlan(model(tmp_path / name, "1")))


def test_a_workspace_inside_its_model_is_refused(tmp_path: Path) -> None:
    main = model(tmp_path / "m", "1")
    with pytest.raises(UsageError, match=r"would lie inside the model .*: choose another place"):
        create_workspace(tmp_path / "m" / "proj", WorkspacePlan(main))


def test_a_model_folder_needs_model_json_and_weights(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    with pytest.raises(ConfigError, match=r"there is no file .*model\.json"):
        contents_of_folder(tmp_path / "m")


def test_a_target_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = WorkspacePlan(model(tmp_path / "m", "1"))
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file", tmp_path / "file" / "proj"):
        with pytest.raises(UsageError, match=r"cannot make the workspace .*file"):
            create_workspace(target, plan)

    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system", "proj/x")

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(UsageError, match=r"proj: Read-only file system \(proj/x\)"):
        create_workspace(tmp_path / "proj", plan)


def test_a_folder_without_write_permission(tmp_path: Path) -> None:
    plan = WorkspacePlan(model(tmp_path / "m", "1"))
    (tmp_path / "proj").mkdir(mode=0o555)
    with permissions_apply(), pytest.raises(UsageError, match="Permission denied"):
        create_workspace(tmp_path / "proj", plan)


def test_a_full_disk_is_said_before_anything_is_copied(tmp_path: Path) -> None:
    main = model(tmp_path / "m", "1")
    huge = FileCopy(main.origin / "model.json", PurePath("huge"), 1 << 60)
    plan = WorkspacePlan(ModelContents("m", "1", main.origin, [huge]))
    with pytest.raises(UsageError, match=r"needs 1152921.5 TB, but only .* are free"):
        create_workspace(tmp_path / "proj", plan)
    assert tree(tmp_path / "proj") == {}


def test_copies_follow_links_and_leave_hidden_files(tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_bytes(b"weights")
    folder = tmp_path / "m"
    (folder / ".cache").mkdir(parents=True)
    (folder / ".cache/x").write_text("")
    (folder / "b").symlink_to(blob)
    (folder / "a").write_text("")
    places = [copy.place.as_posix() for copy in files_below(folder)]
    assert places == ["a", "b"]
    copy_files(files_below(folder), tmp_path / "to", lambda _: None)
    assert not (tmp_path / "to/b").is_symlink()
    assert (tmp_path / "to/b").read_bytes() == b"weights"


def test_links_that_lead_nowhere_or_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m/gone").symlink_to("nowhere")
    with pytest.raises(UsageError, match="gone cannot be copied: it is a broken link"):
        files_below(tmp_path / "m")
    (tmp_path / "m/gone").unlink()
    (tmp_path / "m/loop").symlink_to(tmp_path / "m")
    with pytest.raises(UsageError, match="loop is a link to a folder that contains it"):
        files_below(tmp_path / "m")


@pytest.mark.parametrize("without_range_copy", [True, False])
def test_copying_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_range_copy: bool
) -> None:
    monkeypatch.setattr(copying, "BLOCK_BYTES", 1000)
    if without_range_copy:
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    content = os.urandom(4321)
    (tmp_path / "from").write_bytes(content)
    (tmp_path / "from").chmod(0o755)
    reported: list[int] = []
    copy = FileCopy(tmp_path / "from", PurePath("sub/to"), len(content))
    copy_files([copy], tmp_path, reported.append)
    assert (tmp_path / "sub/to").read_bytes() == content
    assert (tmp_path / "sub/to").stat().st_mode & stat.S_IXUSR
    assert sum(reported) == len(content)
    assert len(reported) == 5


def test_a_file_that_changes_while_copied_is_refused(tmp_path: Path) -> None:
    (tmp_path / "from").write_bytes(b"123")
    with pytest.raises(UsageError, match="from changed while it was being copied"):
        copy_files([FileCopy(tmp_path / "from", PurePath("to"), 4)], tmp_path, lambda _: None)
    assert not (tmp_path / "to").exists()


def test_a_gguf_file_becomes_a_model_folder(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "tiny ü.gguf", TinyModel())
    contents = contents_of_gguf(path, lambda file, model_id: {"model_id": model_id})
    folder = create_workspace(tmp_path / "proj", WorkspacePlan(contents)).main_model
    assert folder.name == "tiny ü"
    assert (folder / "ggml/weights.gguf").read_bytes() == path.read_bytes()
    assert json.loads((folder / "model.json").read_text()) == {"model_id": content_id(path)}
    assert resolve_model(folder).vocab == folder / "vocab.gguf"


def test_a_vocabulary_file_has_all_metadata_and_no_tensor(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf", TinyModel())
    contents = contents_of_gguf(path, lambda file, model_id: {})
    vocab = tmp_path / "vocab.gguf"
    vocab.write_bytes(contents.written["vocab.gguf"])
    ours, theirs = GGUFFile.open(vocab), GGUFFile.open(path)
    assert list(ours.metadata) == list(theirs.metadata)
    assert list(ours.metadata["tokenizer.ggml.tokens"]) == list(  # type: ignore[arg-type]
        theirs.metadata["tokenizer.ggml.tokens"]  # type: ignore[arg-type]
    )
    assert not ours.tensors
    independent = GGUFReader(vocab)
    assert set(ours.metadata) <= set(independent.fields)
    assert not independent.tensors


def test_a_split_or_broken_gguf_is_refused(tmp_path: Path) -> None:
    first = write_tiny_model(tmp_path / "s.gguf", TinyModel(), max_tensors_per_file=10)
    with pytest.raises(UsageError, match=r"is split into \d+ files: merge them first"):
        contents_of_gguf(first, lambda file, model_id: {})
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelFileError):
        contents_of_gguf(tmp_path / "b.gguf", lambda file, model_id: {})


def test_the_id_depends_on_content_only(tmp_path: Path) -> None:
    content = bytearray(os.urandom(8 << 20))
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(content)
    second.write_bytes(content)
    assert content_id(first) == content_id(second)
    assert len(content_id(first)) == 16
    for change in (0, 5 << 20, len(content) - 1):  # the second lies in a sample
        position = change - change % ((8 << 20) // 64) if 0 < change < len(content) - 1 else change
        changed = bytearray(content)
        changed[position] ^= 1
        second.write_bytes(changed)
        assert content_id(first) != content_id(second)
    first.write_bytes(bytes(8 << 20))
    second.write_bytes(bytes((8 << 20) + 1))  # every sample is the same
    assert content_id(first) != content_id(second)
    (tmp_path / "empty").write_bytes(b"")
    assert content_id(tmp_path / "empty")


def run_launcher(script: Path, *arguments: str, **environment: str) -> str:
    result = subprocess.run(
        [script, *arguments], env=os.environ | environment, capture_output=True, text=True
    )
    return f"{result.returncode} {result.stdout}{result.stderr}".strip()


def write_launcher(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.mark.skipif(os.name == "nt", reason="sh scripts")
def test_a_launcher_runs_its_python_wherever_that_lies(tmp_path: Path) -> None:
    python = tmp_path / "it's $HOME `x`" / "py thon"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    (tmp_path / "told.py").write_text(
        "import sys\ndef main():\n    print(sys.argv[1:])\n    return 7\n"
    )
    script = write_launcher(tmp_path / "bin x/prog", launcher("prog", "told:main", str(python)))
    said = run_launcher(script, "a b", "$c", "'", PYTHONPATH=str(tmp_path))
    assert said == "7 ['a b', '$c', \"'\"]"


@pytest.mark.skipif(os.name == "nt", reason="sh scripts")
def test_a_launcher_falls_back_to_the_path(tmp_path: Path) -> None:
    script = write_launcher(tmp_path / "a/prog", launcher("prog", "x:main", "/gone/python"))
    write_launcher(tmp_path / "b/prog", '#!/bin/sh\necho "other $1"\n')
    path = os.environ["PATH"]
    assert run_launcher(script, "x y", PATH=f"{tmp_path}/b:{path}") == "0 other x y"
    said = run_launcher(script, PATH=f"{tmp_path}/a:{path}")  # must not call itself for ever
    assert said.startswith("127 prog: there is no /gone/python; install powerserve")


def test_launchers_and_executables_go_to_bin(tmp_path: Path) -> None:
    (tmp_path / "exe/lib").mkdir(parents=True)
    (tmp_path / "exe/own").write_text("own")
    (tmp_path / "exe/own").chmod(0o755)
    (tmp_path / "exe/lib/x.so").write_text("x")
    plan = WorkspacePlan(
        model(tmp_path / "m", "1"),
        launchers={"prog": "#!/bin/sh\n", "own": "not this"},
        executables=files_below(tmp_path / "exe"),
    )
    create_workspace(tmp_path / "proj", plan)
    assert tree(tmp_path / "proj/bin") == {
        "prog": b"#!/bin/sh\n",
        "own": b"own",
        "lib/x.so": b"x",
    }
    for program in ("prog", "own"):
        assert (tmp_path / "proj/bin" / program).stat().st_mode & stat.S_IXUSR


def test_qnn_libraries_are_picked_from_the_sdk(tmp_path: Path) -> None:
    sdk = tmp_path / "qnn sdk"
    wanted = (
        "lib/aarch64-android/libQnnHtp.so",
        "lib/aarch64-android/libQnnHtpV75Stub.so",
        "lib/hexagon-v75/unsigned/libQnnHtpV75Skel.so",
        "lib/hexagon-v79/unsigned/libQnnHexagonSkel_dspApp.so",
    )
    unwanted = ("lib/aarch64-android/libQnnGpu.so", "lib/x86_64-linux-clang/libQnnHtp.so")
    for place in wanted + unwanted:
        (sdk / place).parent.mkdir(parents=True, exist_ok=True)
        (sdk / place).write_text(place)
    missing = copy_qnn_libs(sdk, tmp_path / "proj/qnn_libs")
    assert tree(tmp_path / "proj/qnn_libs") == {
        Path(place).name: place.encode() for place in wanted
    }
    assert missing == ["lib/aarch64-android/libQnnSystem.so"]
