"""safetensors files: what is in them is found, and nothing that is wrong passes."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from powerserve.core.errors import ModelFileError, ModelNotFoundError, PowerServeError
from powerserve.storage.safetensors import read_safetensors
from safetensors_files import entry, write_raw, write_safetensors


def test_tensors_are_read(tmp_path: Path) -> None:
    arrays = {
        "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "scalar": np.array(7, np.int64),
        "empty": np.empty((0, 5), np.float16),
        "half": np.array([1.5, -2], np.float16),
    }
    tensors = read_safetensors(write_safetensors(tmp_path / "m.safetensors", arrays))
    assert list(tensors) == list(arrays)
    for name, array in arrays.items():
        assert tensors[name].shape == array.shape
        assert tensors[name].data.tobytes() == array.tobytes()
        assert not tensors[name].data.flags.writeable
    assert [tensors[name].dtype for name in arrays] == ["F32", "I64", "F16", "F16"]


def test_padding_of_the_header_and_any_order_are_allowed(tmp_path: Path) -> None:
    header = b'{"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]},'
    header += b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}    '
    tensors = read_safetensors(write_raw(tmp_path / "m", header, b"\1\2\3"))
    assert tensors["a"].data.tolist() == [1]
    assert tensors["b"].data.tolist() == [2, 3]


def test_a_file_without_tensors(tmp_path: Path) -> None:
    assert read_safetensors(write_raw(tmp_path / "m", {})) == {}


@pytest.mark.parametrize(
    ("tensors", "data", "complaint"),
    [
        ({"a": entry("F32", [2], 0, 8)}, 7, "ends after .* bytes: the download"),
        ({"a": entry("F32", [2], 0, 8)}, 9, "1 bytes follow the last tensor"),
        ({"a": entry("F32", [2], 4, 12)}, 12, "unused bytes before tensor a"),
        (
            {"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 3, 7)},
            7,
            "tensors a and b overlap",
        ),
        (
            {"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 5, 9)},
            9,
            "unused bytes before tensor b",
        ),
        ({"a": entry("F32", [3], 0, 8)}, 8, "takes 12 bytes, but its place is from 0 to 8"),
        ({"a": entry("F32", [2], 8, 0)}, 8, "from 8 to 0"),
        ({"a": entry("F32", [-2, -1], 0, 8)}, 8, "impossible shape"),
        ({"a": entry("F32", [1 << 40, 1 << 40], 0, 8)}, 8, "impossible shape"),
        ({"a": entry("F32", [1] * 9, 0, 4)}, 4, "impossible shape"),
        ({"a": entry("Q3", [2], 0, 8)}, 8, "element type 'Q3', which is not known"),
        ({"a\n": entry("F32", [2], 0, 8)}, 8, "no proper name"),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8, "not that of a safetensors file"),
        ({"a": entry("F32", [2.5], 0, 8)}, 8, "not that of a safetensors file"),  # type: ignore[list-item]
        ({"a": entry("F32", [2], 0, 1 << 70)}, 8, "not that of a safetensors file|place is from"),
        ({"a": [1]}, 8, "not that of a safetensors file"),
    ],
)
def test_a_damaged_table_is_refused(
    tmp_path: Path, tensors: dict[str, Any], data: int, complaint: str
) -> None:
    path = write_raw(tmp_path / "m.safetensors", tensors, bytes(data))
    with pytest.raises(PowerServeError, match=complaint) as caught:
        read_safetensors(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty"),
        (b"\0\0\0", "has only 3 bytes"),
        (struct.pack("<Q", 1 << 62) + b"{}", "claims 4611686018427387904 bytes"),
        (struct.pack("<Q", 100_000_001) + b"{}", "at most 100000000 are allowed"),
        (struct.pack("<Q", 3) + b"{}", "inside its header"),
        (struct.pack("<Q", 2) + b"[]", "not that of a safetensors file"),
        (struct.pack("<Q", 2) + b"\xff}", "not that of a safetensors file"),
        (struct.pack("<Q", 100_000) + b'{"a":' + b"[" * 99_995, "not that of a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "claims .* bytes"),
    ],
)
def test_a_foreign_or_cut_file_is_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(ModelFileError, match=complaint):
        read_safetensors(tmp_path / "m")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="does not exist"):
        read_safetensors(tmp_path / "none")
    with pytest.raises(ModelFileError, match="is not a regular file"):
        read_safetensors(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ModelFileError, match="is not a regular file"):
            read_safetensors(tmp_path / "pipe")


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_any_changed_byte_gives_a_sentence_or_sound_tensors(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    write_safetensors(path, {"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float16)})
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(1, len(raw)))])
    try:
        tensors = read_safetensors(path)
    except PowerServeError:
        return
    assert all(tensor.data.size <= len(raw) for tensor in tensors.values())
