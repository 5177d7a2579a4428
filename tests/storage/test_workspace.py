"""workspace.json and hparams.json: exact bytes, defaults, and a sentence for every mistake."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_folders import write_model_folder, write_workspace_folder
from powerserve.core.errors import ConfigError, ModelNotFoundError
from powerserve.storage.hparams import (
    GREEDY,
    RANDOM_SEED,
    Hparams,
    SamplerHparams,
    read_hparams,
    write_hparams,
)
from powerserve.storage.model_folder import ModelFolder
from powerserve.storage.workspace import Workspace, escapes_folder, write_workspace

HPARAMS_BYTES = b"""{
    "n_threads": 4,
    "batch_size": 128,
    "sampler": {
        "seed": 0,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 1,
        "min_keep": 0,
        "penalty_last_n": 64,
        "penalty_repeat": 1,
        "penalty_freq": 0,
        "penalty_present": 0,
        "penalize_nl": false,
        "ignore_eos": false
    }
}"""
WORKSPACE_BYTES = b"""{
    "executables": "bin",
    "hparams_config": "hparams.json",
    "model_main": "my model",
    "model_draft": "draft"
}"""


def write(folder: Path, text: str, name: str = "hparams.json") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def test_greedy_hparams_are_written_as_the_original_writes_them(tmp_path: Path) -> None:
    write_hparams(tmp_path / "hparams.json", GREEDY)
    assert (tmp_path / "hparams.json").read_bytes() == HPARAMS_BYTES
    assert read_hparams(tmp_path / "hparams.json") == GREEDY


def test_missing_keys_have_the_built_in_defaults(tmp_path: Path) -> None:
    hparams = read_hparams(write(tmp_path, '{"sampler": {"top_k": 7}}'))
    assert (hparams.n_threads, hparams.batch_size) == (4, 128)
    assert hparams.sampler == SamplerHparams(
        seed=2**64 - 1,
        temperature=0.80,
        top_p=0.95,
        top_k=7,
        min_keep=0,
        penalty_last_n=64,
        penalty_repeat=1.0,
        penalty_freq=0.0,
        penalty_present=0.0,
        penalize_nl=False,
        ignore_eos=False,
    )
    assert read_hparams(write(tmp_path, "{}")).sampler.top_k == 40


def test_unknown_keys_are_ignored(tmp_path: Path) -> None:
    path = write(tmp_path, '{"colour": "red", "sampler": {"min_p": 0.1}, "batch_size": 9}')
    assert read_hparams(path) == Hparams(batch_size=9)


def test_seeds_that_mean_random() -> None:
    assert SamplerHparams(seed=RANDOM_SEED).fixed_seed is None
    assert SamplerHparams(seed=-1).fixed_seed is None
    assert SamplerHparams(seed=0).fixed_seed == 0
    assert SamplerHparams(seed=2**64 - 2).fixed_seed == 2**64 - 2


def test_threads_are_limited_to_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert Hparams(n_threads=4).usable_threads == 4
    assert Hparams(n_threads=64).usable_threads == 6


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"n_threads": "4"}', "the key `n_threads` is wrong: expected `int`, got `str`"),
        ('{"n_threads": true}', "the key `n_threads` is wrong: expected `int`, got `bool`"),
        ('{"n_threads": 0}', "the key `n_threads` is wrong: expected `int` >= 1"),
        ('{"batch_size": 1.5}', "the key `batch_size` is wrong: expected `int`, got `float`"),
        ('{"batch_size": null}', "the key `batch_size` is wrong: expected `int`, got `null`"),
        ('{"sampler": []}', "the key `sampler` is wrong: expected `object`, got `array`"),
        ('{"sampler": {"top_p": 2}}', "the key `sampler.top_p` is wrong: expected `float` <= 1.0"),
        ('{"sampler": {"top_k": -1}}', "the key `sampler.top_k` is wrong: expected `int` >= 0"),
        (
            '{"sampler": {"temperature": -0.5}}',
            "the key `sampler.temperature` is wrong: expected `float` >= 0.0",
        ),
        (
            '{"sampler": {"penalty_repeat": 0}}',
            "the key `sampler.penalty_repeat` is wrong: expected `float` > 0.0",
        ),
        (
            '{"sampler": {"ignore_eos": 1}}',
            "the key `sampler.ignore_eos` is wrong: expected `bool`, got `int`",
        ),
        ("[]", "the file as a whole is wrong: expected `object`, got `array`"),
    ],
)
def test_wrong_values_name_file_and_key(tmp_path: Path, text: str, sentence: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_hparams(path)
    assert str(caught.value) == f"{path}: {sentence}"


@pytest.mark.parametrize("text", ["", "{", '{"n_threads": 4,}', "no", '{"n_threads": NaN}'])
def test_broken_json_is_said_to_be_so(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"hparams\.json is not valid JSON: "):
        read_hparams(write(tmp_path, text))


def test_bytes_that_are_not_text_are_broken_json(tmp_path: Path) -> None:
    (tmp_path / "workspace.json").write_bytes(b'{"model_main": "\xff"}')
    with pytest.raises(ConfigError, match="is not valid JSON"):
        Workspace.open(tmp_path)


def test_a_missing_file_and_a_folder_instead_of_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no file .*hparams\.json"):
        read_hparams(tmp_path / "hparams.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_hparams(tmp_path)


def test_workspace_json_is_written_as_the_original_writes_it(tmp_path: Path) -> None:
    write_workspace(tmp_path, "my model", "draft")
    assert (tmp_path / "workspace.json").read_bytes() == WORKSPACE_BYTES


def test_a_workspace_names_models_and_hparams(tmp_path: Path) -> None:
    folder = write_workspace_folder(tmp_path / "pröj 'x'", "my model", "draft")
    workspace = Workspace.open(folder)
    assert workspace.main_model == folder / "my model"
    assert workspace.draft_model == folder / "draft"
    assert workspace.hparams == Hparams(n_threads=3)


@pytest.mark.parametrize("draft", ['""', "null"])
def test_a_workspace_without_draft_or_hparams(tmp_path: Path, draft: str) -> None:
    write(tmp_path, f'{{"model_main": "m", "model_draft": {draft}}}', "workspace.json")
    workspace = Workspace.open(tmp_path)
    assert workspace.draft_model is None
    assert workspace.hparams == Hparams()


def test_another_file_can_stand_for_workspace_json(tmp_path: Path) -> None:
    folder = write_workspace_folder(tmp_path / "proj")
    other = write(tmp_path, '{"model_main": "other"}', "other.json")
    assert Workspace.open(folder, other).main_model == folder / "other"


def test_sentences_about_missing_workspaces(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no workspace folder .*none"):
        Workspace.open(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"is not a workspace.*workspace\.json.*powerserve creat"):
        Workspace.open(tmp_path)
    write(tmp_path, "{", "workspace.json")
    with pytest.raises(ConfigError, match=r"workspace\.json is not valid JSON"):
        Workspace.open(tmp_path)
    write(tmp_path, '{"model_main": 3}', "workspace.json")
    with pytest.raises(ConfigError, match=r"the key `model_main` is wrong: expected `str`"):
        Workspace.open(tmp_path)
    write(tmp_path, "{}", "workspace.json")
    with pytest.raises(ConfigError, match="`model_main` names no model folder"):
        _ = Workspace.open(tmp_path).main_model
    write(tmp_path, '{"hparams_config": "gone.json"}', "workspace.json")
    with pytest.raises(ConfigError, match=r"there is no file .*gone\.json"):
        _ = Workspace.open(tmp_path).hparams


@pytest.mark.parametrize("key", ["model_main", "model_draft", "hparams_config"])
@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc", "..", "C:\\x", "\\x", "a\0b", "."])
def test_names_that_leave_the_workspace_are_refused(tmp_path: Path, key: str, name: str) -> None:
    write(tmp_path, json.dumps({key: name}), "workspace.json")
    workspace = Workspace.open(tmp_path)
    attribute = {"hparams_config": "hparams", "model_main": "main_model"}.get(key, "draft_model")
    with pytest.raises(ConfigError, match=rf"`{key}` must name something inside"):
        getattr(workspace, attribute)


@given(st.text())
def test_a_name_that_does_not_escape_stays_below_the_folder(name: str) -> None:
    if not escapes_folder(name):
        place = os.path.normpath(os.path.join("/work/space", name))
        assert place.startswith("/work/space/")


def test_names_with_dots_spaces_and_sub_folders_are_fine() -> None:
    for name in ("Qwen2.5-0.5B", "a..b", "my model", "sub/model", "…", "a+b"):
        assert not escapes_folder(name)


def test_model_folder_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ModelFolder(write_model_folder(tmp_path / "model", "abc"))
    assert folder.model_id() == "abc"
    assert folder.vocab == tmp_path / "model/vocab.gguf"
    folder.require_weights()
    folder.vocab.unlink()
    assert folder.vocab == folder.weights == tmp_path / "model/ggml/weights.gguf"
    monkeypatch.chdir(folder.path)
    assert ModelFolder(Path()).name == "model"


def test_model_folder_says_what_is_missing(tmp_path: Path) -> None:
    folder = ModelFolder(write_model_folder(tmp_path / "model", ""))
    with pytest.raises(ConfigError, match=r"model\.json: the key `model_id` is missing or empty"):
        folder.model_id()
    folder.weights.unlink()
    with pytest.raises(ModelNotFoundError, match=r"has no ggml/weights\.gguf$"):
        folder.require_weights()
    (folder.path / "qnn").mkdir()
    with pytest.raises(ModelNotFoundError, match=r"has NPU files but no ggml/weights\.gguf"):
        folder.require_weights()
