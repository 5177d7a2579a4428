"""Models split over several GGUF files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from powerserve.core.errors import ModelFileError
from powerserve.storage.gguf import GGUFFile
from tiny_models import TinyModel, write_tiny_model


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    write_tiny_model(tmp_path / "tiny.gguf", max_tensors_per_file=8)
    return sorted(tmp_path.glob("*.gguf"))


def test_any_shard_opens_the_whole_model(tmp_path: Path, shards: list[Path]) -> None:
    assert [path.name for path in shards] == [f"tiny-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    whole = GGUFFile.open(write_tiny_model(tmp_path / "whole.gguf"))
    for path in shards:
        with GGUFFile.open(path) as file:
            assert file.path == path
            assert file.tensors.keys() == whole.tensors.keys()
            for name, tensor in file.tensors.items():
                assert tensor.data.tobytes() == whole.tensors[name].data.tobytes()
            assert {*file.metadata} - {*whole.metadata} == {
                "split.no",
                "split.count",
                "split.tensors.count",
            }
            assert [*file.metadata["tokenizer.ggml.tokens"]] == [
                *whole.metadata["tokenizer.ggml.tokens"]
            ]


def test_a_missing_shard_is_named(shards: list[Path]) -> None:
    shards[1].unlink()
    with pytest.raises(ModelFileError, match=r"00002-of-00003\.gguf is missing: it is part 2 of 3"):
        GGUFFile.open(shards[0])


def test_a_renamed_shard_is_refused(tmp_path: Path, shards: list[Path]) -> None:
    renamed = shards[0].rename(tmp_path / "model.gguf")
    with pytest.raises(ModelFileError, match=r"one of 3 parts .* -00001-of-00003\.gguf"):
        GGUFFile.open(renamed)


def test_a_shard_in_the_wrong_place_is_refused(shards: list[Path]) -> None:
    shutil.copy(shards[0], shards[2])
    with pytest.raises(ModelFileError, match="does not say that it is part 3 of 3"):
        GGUFFile.open(shards[1])


def test_shards_must_hold_all_tensors(shards: list[Path]) -> None:
    content = bytearray(shards[0].read_bytes())
    key = b"split.tensors.count"
    count_at = content.index(key) + len(key) + 4  # after the value type
    content[count_at] += 1
    shards[0].write_bytes(content)
    with pytest.raises(ModelFileError, match="the 3 parts hold 21 tensors instead of 22"):
        GGUFFile.open(shards[1])


def test_a_shard_of_another_model_is_refused(tmp_path: Path, shards: list[Path]) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_tiny_model(other / "tiny.gguf", TinyModel(num_layers=1), max_tensors_per_file=4)
    shutil.copy(sorted(other.glob("*.gguf"))[2], shards[2])
    with pytest.raises(ModelFileError, match=r"another part already|tensors instead of"):
        GGUFFile.open(shards[0])
