"""What a user calls a model leads to the right files, or to a sentence that helps."""

from pathlib import Path

import pytest

from model_folders import EMPTY_GGUF, write_model_folder, write_workspace_folder
from powerserve.core.errors import ConfigError, ModelFileError, ModelNotFoundError
from powerserve.storage.hparams import Hparams
from powerserve.storage.resolve import ModelSource, resolve_model, resolve_workspace
from powerserve.storage.workspace import Workspace
from privileges import permissions_apply


class Store(dict[str, Path]):
    def find(self, name: str) -> Path | None:
        return self.get(name)


def folder_source(folder: Path, **more: object) -> ModelSource:
    weights, vocab = folder / "ggml/weights.gguf", folder / "vocab.gguf"
    model_json = folder / "model.json"
    return ModelSource(folder.name, weights, vocab, model_json, folder=folder, **more)  # type: ignore[arg-type]


def gguf(path: Path) -> Path:
    path.write_bytes(EMPTY_GGUF)
    return path


@pytest.mark.parametrize("name", ["tiny.gguf", "a 'b' ü.gguf", "sha256-0123"])
def test_a_gguf_file_is_weights_and_vocabulary(tmp_path: Path, name: str) -> None:
    path = gguf(tmp_path / name)
    assert resolve_model(str(path)) == ModelSource(name.removesuffix(".gguf"), path, path)
    assert resolve_model(path) == resolve_model(str(path))


def test_a_model_folder(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "my model")
    assert resolve_model(folder) == folder_source(folder)


def test_a_model_folder_without_description_or_vocabulary(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "m")
    (folder / "model.json").unlink()
    (folder / "vocab.gguf").unlink()
    weights = folder / "ggml/weights.gguf"
    assert resolve_model(folder) == ModelSource("m", weights, weights, folder=folder)


def test_a_workspace_gives_main_draft_and_hparams(tmp_path: Path) -> None:
    folder = write_workspace_folder(tmp_path / "proj", "big", "small")
    expected = folder_source(
        folder / "big",
        hparams=Hparams(n_threads=3),
        draft=folder_source(folder / "small"),
        draft_is_optional=True,
    )
    assert resolve_model(folder) == expected
    assert resolve_model("", work_folder=folder) == expected
    assert resolve_workspace(Workspace.open(folder)) == expected


def test_the_work_folder_comes_before_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proj = write_workspace_folder(tmp_path / "proj")
    other = write_model_folder(proj / "other")
    here = write_model_folder(tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    source = resolve_model("other", work_folder=proj)
    assert source == folder_source(other, hparams=Hparams(n_threads=3))
    assert resolve_model("other").folder == Path("other")
    (other / "model.json").unlink()
    (other / "ggml/weights.gguf").unlink()
    assert resolve_model("other", work_folder=proj).weights == Path("other/ggml/weights.gguf")
    assert resolve_model(here, work_folder=proj).folder == here


def test_a_work_folder_need_not_be_a_workspace(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "m")
    assert resolve_model("m", work_folder=tmp_path) == folder_source(folder)


def test_the_store_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stored = gguf(tmp_path / "blob")
    store = Store({"qwen": stored})
    (tmp_path / "qwen").mkdir()  # a folder of that name without a model is no obstacle
    assert resolve_model("qwen", store=store) == ModelSource("qwen", stored, stored)
    write_model_folder(tmp_path / "qwen" / "x").rename(tmp_path / "q")
    (tmp_path / "qwen").rmdir()
    (tmp_path / "q").rename(tmp_path / "qwen")
    assert resolve_model("qwen", store=store).folder == Path("qwen")


def test_main_and_draft_are_split_at_a_plus(tmp_path: Path) -> None:
    a, b = write_model_folder(tmp_path / "a"), gguf(tmp_path / "b.gguf")
    draft = ModelSource("s", b, b)
    source = resolve_model("a+s", work_folder=tmp_path, store=Store(s=b))
    assert source == folder_source(a, draft=draft)


def test_an_existing_name_with_plus_wins(tmp_path: Path) -> None:
    for name in ("a", "b", "a+b"):
        write_model_folder(tmp_path / name)
    assert resolve_model("a+b", work_folder=tmp_path) == folder_source(tmp_path / "a+b")
    three = resolve_model("a+b+b", work_folder=tmp_path)
    assert three == folder_source(tmp_path / "a+b", draft=folder_source(tmp_path / "b"))


def test_a_path_with_plus_can_be_paired(tmp_path: Path) -> None:
    main = write_model_folder(tmp_path / "c++" / "big")
    draft = write_model_folder(tmp_path / "small")
    source = resolve_model(f"{main}+{draft}")
    assert source == folder_source(main, draft=folder_source(draft))


def test_a_pair_replaces_the_draft_of_a_workspace(tmp_path: Path) -> None:
    write_workspace_folder(tmp_path / "proj", "big", "small")
    tiny = write_model_folder(tmp_path / "tiny")
    source = resolve_model("proj+tiny", work_folder=tmp_path)
    assert source.name == "big"
    assert source.draft == folder_source(tiny)
    assert not source.draft_is_optional  # it was asked for by name


def test_not_found_says_what_was_tried_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "m").mkdir()
    with pytest.raises(ModelNotFoundError) as caught:
        resolve_model("m", work_folder=tmp_path / "full", store=Store())
    assert str(caught.value) == (
        f"no model answers to `m`; looked at `{tmp_path}/full/m` (a folder without model.json, "
        "ggml/weights.gguf or workspace.json), `m`, the model store. "
        "`powerserve list` shows the models that are here, `powerserve pull m` fetches one"
    )


def test_a_checkpoint_is_to_be_converted_first(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"")
    with pytest.raises(ModelNotFoundError, match="a checkpoint: `powerserve convert hf-to-gguf`"):
        resolve_model(tmp_path)


def test_not_found_says_which_of_a_pair(tmp_path: Path) -> None:
    write_model_folder(tmp_path / "a")
    with pytest.raises(ModelNotFoundError, match="no model answers to `zz`"):
        resolve_model("a+zz", work_folder=tmp_path)
    with pytest.raises(ModelNotFoundError, match="no model answers to `a\\+`"):
        resolve_model("a+", work_folder=tmp_path)


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "notes.gguf"
    path.write_text("hello")
    with pytest.raises(ModelNotFoundError, match=r"notes\.gguf` \(not a GGUF file\)"):
        resolve_model(path)


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = gguf(tmp_path / "a.gguf")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ModelFileError, match=r"a\.gguf cannot be read: Permission denied"):
        resolve_model(path)


def test_incomplete_model_folders_say_what_is_missing(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "m")
    (folder / "ggml/weights.gguf").unlink()
    with pytest.raises(ModelNotFoundError, match=r"m has no ggml/weights\.gguf"):
        resolve_model(folder)
    (folder / "qnn").mkdir()
    with pytest.raises(ModelNotFoundError, match=r"NPU files but no ggml/weights\.gguf"):
        resolve_model(folder)


@pytest.mark.parametrize(("key", "name"), [("model_main", "big"), ("model_draft", "small")])
def test_a_workspace_that_names_a_missing_model(tmp_path: Path, key: str, name: str) -> None:
    folder = write_workspace_folder(tmp_path / "proj", "big", "small")
    (folder / name).rename(tmp_path / "away")
    with pytest.raises(ConfigError, match=rf"`{key}` names .*{name}, but that is no model folder"):
        resolve_model(folder)
    (folder / name).mkdir()
    with pytest.raises(ConfigError, match="but that is a folder without a model"):
        resolve_model(folder)


def test_no_reference_and_no_workspace(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a workspace"):
        resolve_model("", work_folder=tmp_path)
    with pytest.raises(ModelNotFoundError, match="looked at nothing"):
        resolve_model("")


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "a/" * 3000, "+", "++" * 500, "\udc80"])
def test_hostile_names_are_just_not_found(tmp_path: Path, name: str) -> None:
    for allow_paths in (True, False):
        with pytest.raises(ModelNotFoundError):
            resolve_model(name, work_folder=tmp_path, store=Store(), allow_paths=allow_paths)


def test_without_paths_only_names_below_the_work_folder_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proj = write_workspace_folder(tmp_path / "proj")
    outside = write_model_folder(tmp_path / "outside")
    monkeypatch.chdir(tmp_path)
    for name in ("outside", str(outside), "../outside", "main/../../outside", "main+../outside"):
        with pytest.raises(ModelNotFoundError):
            resolve_model(name, work_folder=proj, allow_paths=False)
    for name in ("main", ""):
        assert resolve_model(name, work_folder=proj, allow_paths=False).name == "main"


def test_a_folder_that_may_not_be_entered_is_not_found(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "m")
    folder.chmod(0)
    try:
        with permissions_apply(), pytest.raises(ModelNotFoundError):
            resolve_model(folder)
    finally:
        folder.chmod(0o755)
