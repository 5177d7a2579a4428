"""Reading sound GGUF files, compared with the `gguf` package's own reader."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

import gguf_bytes as raw
from gguf_bytes import RawTensor, write_gguf
from powerserve.core import dtypes
from powerserve.core.errors import ModelFileError
from powerserve.storage import gguf_strings
from powerserve.storage.gguf import GGUFFile
from tiny_models import TinyModel, write_tiny_model
from tiny_vocabulary import CHATML, MERGES, vocabulary

MODELS = {
    "llama-f32": TinyModel(rope_factors=True),
    "llama-aligned": TinyModel(alignment=4096, dtype="Q4_0"),
    "qwen2-q8_0": TinyModel("qwen2", dtype="Q8_0"),
    "qwen3-bf16": TinyModel("qwen3", dtype="BF16", tied=True),
    "llama-q6_k": TinyModel(dtype="Q6_K", embed_dim=256, ffn_dim=256, num_layers=1),
}


@pytest.mark.parametrize("name", MODELS)
def test_tensors_are_bit_identical_to_the_reference_reader(tmp_path: Path, name: str) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf", MODELS[name])
    reference = gguf.GGUFReader(path)
    with GGUFFile.open(path) as file:
        assert list(file.tensors) == [tensor.name for tensor in reference.tensors]
        for expected in reference.tensors:
            tensor = file.tensors[expected.name]
            assert tensor.name == expected.name
            assert tensor.shape == tuple(reversed(expected.shape.tolist()))
            assert tensor.dtype.ggml_id == expected.tensor_type
            assert tensor.offset == expected.data_offset
            assert tensor.size_bytes == expected.n_bytes == len(tensor.data)
            assert tensor.data.dtype == np.uint8 and tensor.data.ndim == 1
            assert tensor.data.tobytes() == expected.data.tobytes()


@pytest.mark.parametrize("name", MODELS)
def test_metadata_equals_the_reference_reader(tmp_path: Path, name: str) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf", MODELS[name])
    reference = gguf.GGUFReader(path)
    with GGUFFile.open(path) as file:
        expected = {
            key: field.contents()
            for key, field in reference.fields.items()
            if not key.startswith("GGUF.")  # the reader's names for the counts
        }
        found = {
            key: value if isinstance(value, str) or not hasattr(value, "__len__") else [*value]
            for key, value in file.metadata.items()
        }
    assert found == expected


def test_vocabulary_arrays_behave_as_sequences(tmp_path: Path) -> None:
    with GGUFFile.open(write_tiny_model(tmp_path / "tiny.gguf")) as file:
        tokens, merges = (file.metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "merges"))
        assert tuple(tokens) == vocabulary()
        assert tuple(merges) == MERGES
        assert (tokens[0], tokens[-1]) == (vocabulary()[0], vocabulary()[-1])
        assert tokens[250:260] == list(vocabulary()[250:260])
        assert len(tokens) == len(vocabulary())
        assert "<|im_end|>" in tokens
        with pytest.raises(IndexError):
            tokens[len(tokens)]
        assert file.metadata["tokenizer.chat_template"] == CHATML


def test_every_value_type_is_read(tmp_path: Path) -> None:
    formats = {
        raw.U8: ("<B", 200),
        raw.I8: ("<b", -100),
        raw.U16: ("<H", 60000),
        raw.I16: ("<h", -30000),
        raw.U32: ("<I", 4_000_000_000),
        raw.I32: ("<i", -2_000_000_000),
        raw.FLOAT32: ("<f", 0.5),
        raw.BOOL: ("<?", True),
        raw.U64: ("<Q", 2**63),
        raw.I64: ("<q", -(2**62)),
        raw.FLOAT64: ("<d", 0.1),
    }
    keys = [raw.string_key("text", "schön"), raw.array_key("none", raw.STRING, 0, b"")]
    for number, (code, value) in formats.items():
        keys.append(raw.key(f"scalar{number}", number, struct.pack(code, value)))
        keys.append(raw.array_key(f"array{number}", number, 3, struct.pack(code, value) * 3))
    with GGUFFile.open(write_gguf(tmp_path / "values.gguf", keys=keys)) as file:
        assert file.metadata["text"] == "schön"
        assert list(file.metadata["none"]) == []
        for number, (_, value) in formats.items():
            scalar, array = file.metadata[f"scalar{number}"], file.metadata[f"array{number}"]
            assert scalar == value and type(scalar) is type(value)
            assert array.tolist() == [value] * 3


@pytest.mark.parametrize("version", [2, 3])
def test_versions_two_and_three_are_read(tmp_path: Path, version: int) -> None:
    path = write_gguf(
        tmp_path / "v.gguf", version=version, tensors=[RawTensor("a")], data=bytes(128)
    )
    assert GGUFFile.open(path).tensors["a"].shape == (32,)


def test_a_file_of_metadata_alone_is_read(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "vocab.gguf", keys=[raw.string_key("a", "b")], alignment=1)
    with GGUFFile.open(path) as file:
        assert dict(file.metadata) == {"a": "b"} and file.tensors == {}


def test_tensors_may_lie_in_any_order_and_with_gaps(tmp_path: Path) -> None:
    data = np.arange(96, dtype=np.float32).tobytes()
    tensors = [RawTensor("late", offset=256), RawTensor("early", dims=(8, 4), offset=0)]
    with GGUFFile.open(write_gguf(tmp_path / "a.gguf", tensors=tensors, data=data)) as file:
        assert file.tensors["late"].data.tobytes() == data[256:384]
        assert file.tensors["early"].shape == (4, 8)
        assert file.tensors["early"].data.tobytes() == data[:128]


# Lengths that a guess from zero bytes could take for something else: empty strings, NUL
# characters, lengths with a zero low byte, lengths beyond two bytes.
AWKWARD = {
    "empty": [""] * 9000,
    "one empty": ["a"] * 500 + [""] + ["b"] * 9000,
    "pairs of empty": ["", "", "text"] * 5000,
    "nul": ["\0", "a\0\0\0\0\0\0\0\0\0b", "\0" * 20] * 3000,
    "256": ["x" * 256, "y" * 512, "z"] * 600,
    "long": ["q" * 70_000, "r"] * 6,
    "mixed": ["", "\0", "ab", "c" * 300, "d" * 66_000, "e\0"] * 20,
    "around a window": [chr(97 + i % 26) * (i % 40 + 1) for i in range(40_000)],
}


@pytest.mark.parametrize("name", AWKWARD)
def test_string_arrays_of_awkward_lengths_are_found(tmp_path: Path, name: str) -> None:
    strings = AWKWARD[name]
    content = b"".join(raw.string(text) for text in strings)
    keys = [raw.array_key("words", raw.STRING, len(strings), content), raw.string_key("end", "ok")]
    with GGUFFile.open(write_gguf(tmp_path / "words.gguf", keys=keys)) as file:
        assert list(file.metadata["words"]) == strings
        assert file.metadata["words"][len(strings) // 2] == strings[len(strings) // 2]
        assert file.metadata["end"] == "ok"


def test_an_ordinary_vocabulary_is_never_walked_string_by_string(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(5)
    strings = ["x" * size for size in draw.integers(1, 40, 60_000)]
    strings[30_000:30_000] = [" " * 128, " " * 256, " " * 300]  # as some vocabularies have
    walked: list[int | None] = []
    walk = gguf_strings._walk
    monkeypatch.setattr(
        gguf_strings, "_walk", lambda *arguments: walked.append(walk(*arguments)) or walked[-1]
    )
    content = b"".join(raw.string(text) for text in strings)
    keys = [raw.array_key("words", raw.STRING, len(strings), content)]
    with GGUFFile.open(write_gguf(tmp_path / "words.gguf", keys=keys, data=bytes(99))) as file:
        assert list(file.metadata["words"]) == strings
    assert sum(number or 0 for number in walked) == 0


def test_strings_are_decoded_only_when_read(tmp_path: Path) -> None:
    content = raw.string("good") + raw.string(b"\xff\xfe")
    path = write_gguf(tmp_path / "a.gguf", keys=[raw.array_key("words", raw.STRING, 2, content)])
    with GGUFFile.open(path) as file:
        words = file.metadata["words"]
        assert words[0] == "good"
        for read in (lambda: words[1], lambda: list(words)):
            with pytest.raises(ModelFileError, match=r"a\.gguf: words: string 1 is not UTF-8"):
                read()


def test_views_outlive_the_file_and_cannot_be_written(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf")
    with GGUFFile.open(path) as file:
        tensor = file.tensors["output_norm.weight"]
        expected = tensor.data.tobytes()
    assert not file.tensors and not file.metadata
    assert tensor.data.tobytes() == expected
    with pytest.raises(ValueError, match="read-only"):
        tensor.data[0] = 1


def test_dtypes_agree_with_the_gguf_package() -> None:
    for dtype in dtypes.ALL:
        number = gguf.GGMLQuantizationType(dtype.ggml_id)
        assert number.name == dtype.name
        assert gguf.GGML_QUANT_SIZES[number] == (dtype.block_size, dtype.block_bytes)
