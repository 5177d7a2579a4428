"""Damaged, foreign and hostile files: one clear sentence each, nothing else."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

import gguf_bytes as raw
from gguf_bytes import RawTensor, write_gguf
from powerserve.core.errors import ModelFileError, ModelNotFoundError, UnsupportedModelError
from powerserve.storage.gguf import GGUFFile
from tiny_models import TinyModel, write_tiny_model

A = RawTensor("a")
HUGE = 2**60

TENSORS: dict[str, tuple[list[RawTensor], str]] = {
    "no dimensions": ([RawTensor("a", dims=())], "a has 0 dimensions"),
    "five dimensions": ([RawTensor("a", dims=(1,) * 5)], "a has 5 dimensions"),
    "absurd number of dimensions": ([RawTensor("a", num_dims=2**32 - 1)], "a has 4294967295 dim"),
    "zero dimension": ([RawTensor("a", dims=(32, 0))], "a has a dimension of zero"),
    "2^33 x 2^33": ([RawTensor("a", dims=(2**33, 2**33))], "a has the impossible shape"),
    "sizes that wrap to zero": ([RawTensor("a", dims=(2**32, 2**32))], "impossible shape"),
    "2^63": ([RawTensor("a", dims=(2**63, 2, 2, 2))], "impossible shape"),
    "broken row": ([RawTensor("a", dims=(33,), dtype=raw.Q4_0)], "not a whole number of Q4_0"),
    "unaligned": ([RawTensor("a", offset=4)], "a starts at 4, not at a multiple of 32"),
    "far offset": ([RawTensor("a", offset=HUGE)], f"ends after .* of {HUGE + 64 + 128} bytes"),
    "largest offset": ([RawTensor("a", offset=2**64 - 32)], "the download was probably cut off"),
    "beyond the end": ([RawTensor("a", dims=(1000,))], "fetch it again"),
    "overlap": ([A, RawTensor("b", offset=96)], "tensors a and b overlap"),
    "same place": ([A, RawTensor("b")], "overlap"),
    "twice": ([A, RawTensor("a", offset=128)], "tensor a appears twice"),
    "long name": ([RawTensor("n" * 64)], "claims 64 bytes where at most 63"),
    "no name": ([RawTensor("")], "no proper name"),
    "NUL in name": ([RawTensor("a\0b")], "no proper name"),
    "name not UTF-8": ([RawTensor(b"\xff")], "a tensor's name is not UTF-8"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_wrong_tensor_tables_are_refused(tmp_path: Path, name: str) -> None:
    tensors, sentence = TENSORS[name]
    path = write_gguf(tmp_path / "wrong.gguf", tensors=tensors, data=bytes(256))
    with pytest.raises(ModelFileError, match=rf"wrong\.gguf: .*{sentence}"):
        GGUFFile.open(path)


@pytest.mark.parametrize("number", [4, 5, 9, 31, 36, 200, 2**32 - 1])
def test_unknown_element_types_are_named(tmp_path: Path, number: int) -> None:
    path = write_gguf(tmp_path / "new.gguf", tensors=[RawTensor("blk.7.x", dtype=number)])
    with pytest.raises(UnsupportedModelError, match=rf"blk\.7\.x has element type {number},"):
        GGUFFile.open(path)


KEYS: dict[str, tuple[list[bytes], str]] = {
    "unknown type": ([raw.key("k", 13, b"")], "k has value type 13"),
    "unknown array type": ([raw.array_key("k", 99, 1, bytes(9))], "k has value type 99"),
    "nested array": ([raw.array_key("k", raw.ARRAY, 1, bytes(12))], "k is an array of arrays"),
    "two booleans at once": ([raw.key("k", raw.BOOL, b"\2")], "neither true nor false"),
    "wrong boolean array": ([raw.array_key("k", raw.BOOL, 2, b"\0\7")], "neither true nor false"),
    "text not UTF-8": ([raw.string_key("k", b"\xc3\x28")], "k is not UTF-8"),
    "key not UTF-8": ([raw.string_key(b"\xff", "v")], "a metadata key is not UTF-8"),
    "control characters": ([raw.string_key("\x1b[2J", "v")], "a metadata key is not a name"),
    "key twice": ([raw.string_key("k", "a"), raw.string_key("k", "b")], "'k' appears twice"),
    "endless text": ([raw.key("k", raw.STRING, raw.u64(2**64 - 1))], "k claims 184467"),
    "text beyond the end": ([raw.key("k", raw.STRING, raw.u64(5000))], "inside its header"),
    "endless key": ([raw.u64(2**63)], "a metadata key claims 9223372036854775808 bytes"),
    "endless numbers": ([raw.array_key("k", raw.U64, 2**61, b"")], "inside its header"),
    "endless strings": ([raw.array_key("k", raw.STRING, 2**61, b"")], "claims 23058430"),
    "too many strings": ([raw.array_key("k", raw.STRING, 2**20, b"")], "inside its header"),
    "string in array beyond the end": (
        [raw.array_key("k", raw.STRING, 2, raw.string("a") + raw.u64(2**63) + bytes(64))],
        "inside its header",
    ),
    "last string of an array beyond the end": (
        [raw.array_key("k", raw.STRING, 2, raw.string("a") + raw.u64(60_000) + b"text")],
        "inside its header",
    ),
    "alignment 0": ([raw.key("general.alignment", raw.U32, raw.u32(0))], "alignment is 0, not"),
    "alignment 48": ([raw.key("general.alignment", raw.U32, raw.u32(48))], "alignment is 48"),
    "alignment 2^31": ([raw.key("general.alignment", raw.U32, raw.u32(2**31))], "alignment is 21"),
    "alignment text": ([raw.string_key("general.alignment", "32")], "alignment is '32'"),
}


@pytest.mark.parametrize("name", KEYS)
def test_wrong_metadata_is_refused(tmp_path: Path, name: str) -> None:
    keys, sentence = KEYS[name]
    path = write_gguf(tmp_path / "wrong.gguf", keys=keys, data=bytes(128))
    with pytest.raises(ModelFileError, match=rf"wrong\.gguf: .*{sentence}"):
        GGUFFile.open(path)


@pytest.mark.parametrize("count", [10_000, 2**17, 2**40, 2**64 - 1])
@pytest.mark.parametrize("what", ["num_keys", "num_tensors"])
def test_absurd_counts_are_refused_before_anything_is_read(
    tmp_path: Path, what: str, count: int
) -> None:
    path = write_gguf(tmp_path / "wrong.gguf", data=bytes(256), **{what: count})
    with pytest.raises(ModelFileError, match=r"the file claims|inside its header"):
        GGUFFile.open(path)


FOREIGN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty: the download failed"),
    "text": (b"Once upon a time\n", "this is not a GGUF file"),
    "short": (b"GG", "this is not a GGUF file"),
    "magic alone": (b"GGUF", "ends after 4 bytes, inside its header"),
    "old GGML": (b"lmgg" + bytes(64), "an old GGML file; convert"),
    "big-endian": (b"GGUF\0\0\0\3" + bytes(64), "big-endian"),
    "zip": (b"PK\x03\x04" + bytes(64), "a zip or PyTorch file"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    "web page": (b"<!DOCTYPE html>", "a web page"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_files_are_recognised(tmp_path: Path, name: str) -> None:
    content, sentence = FOREIGN[name]
    path = tmp_path / "foreign.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=rf"foreign\.gguf.*{sentence}"):
        GGUFFile.open(path)


@pytest.mark.parametrize("version", [0, 1, 4, 999])
def test_other_versions_are_not_supported(tmp_path: Path, version: int) -> None:
    path = write_gguf(tmp_path / "v.gguf", version=version)
    with pytest.raises(UnsupportedModelError, match=f"GGUF version {version};"):
        GGUFFile.open(path)


def test_truncated_files_are_refused_wherever_they_end(tmp_path: Path) -> None:
    content = write_tiny_model(tmp_path / "a.gguf", TinyModel(dtype="Q4_0")).read_bytes()
    draw = random.Random(7)
    header_cuts = [draw.randrange(1, 20_000) for _ in range(10)]
    data_cuts = [draw.randrange(20_000, len(content)) for _ in range(10)]
    for size in (*header_cuts, *data_cuts, len(content) - 1):
        path = tmp_path / "cut.gguf"
        path.write_bytes(content[:size])
        with pytest.raises(ModelFileError, match=r"cut\.gguf: .*fetch it again|not a GGUF file"):
            GGUFFile.open(path)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelFileError, match=f"ends after {len(content) // 2} of {len(content)} b"):
        GGUFFile.open(path)


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    beneath_a_file = write_gguf(tmp_path / "a.gguf") / "b.gguf"
    for path in (tmp_path / "none.gguf", beneath_a_file):
        with pytest.raises(ModelNotFoundError, match=r"\.gguf does not exist"):
            GGUFFile.open(path)


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="is a folder"):
        GGUFFile.open(tmp_path)
    with pytest.raises(ModelFileError, match="cannot be read"):
        GGUFFile.open("a\0b.gguf")
    with pytest.raises(ModelFileError, match="cannot be read"):
        GGUFFile.open(tmp_path / ("n" * 5000))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(ModelFileError, match="not a regular file"):
        GGUFFile.open(tmp_path / "pipe.gguf")


def test_a_file_that_may_not_be_read_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(*_: object) -> Callable[..., object]:
        raise PermissionError(13, "Permission denied")

    path = write_gguf(tmp_path / "a.gguf")
    monkeypatch.setattr(Path, "open", deny)  # chmod does not stop root, whom CI often is
    with pytest.raises(ModelFileError, match=r"a\.gguf cannot be read: Permission denied"):
        GGUFFile.open(path)
