"""Run by test_gguf_fuzz in a process of its own, with little memory: argument is a folder.

Whatever the bytes, opening a file and configuring a model from it may only succeed or raise a
PowerServeError. Anything else ends this process with a traceback, which the test shows.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from powerserve.core.errors import PowerServeError
from powerserve.model.config import config_from_metadata
from powerserve.storage.gguf import GGUFFile
from tiny_models import TinyModel, write_tiny_model

MEMORY_BYTES = 512 << 20  # beyond what the process has when it starts

FOLDER = Path(sys.argv[1])
TARGET = FOLDER / "mutated.gguf"
VALID = write_tiny_model(
    FOLDER / "valid.gguf", TinyModel(num_layers=1, dtype="Q4_0", rope_scaling="yarn")
).read_bytes()
# Where the header says something; between lie the vocabulary and, after it, the weights.
VOCABULARY_START = VALID.index(b"tokenizer.ggml.tokens")
VOCABULARY_END = VALID.index(b"tokenizer.ggml.bos_token_id")
TELLING = [
    *range(VOCABULARY_START + 64),
    *range(VOCABULARY_END, VALID.index(b"blk.0.ffn_down.weight") + 64),
]

NUMBERS = st.sampled_from([0, 1, 2, 7, 8, 9, 31, 33, 255, 2**16, 2**31, 2**32 - 1, 2**33, 2**63])
BYTE_CHANGES = st.lists(st.tuples(st.sampled_from(TELLING), st.integers(0, 255)), max_size=6)
NUMBER_CHANGES = st.lists(st.tuples(st.sampled_from(TELLING), NUMBERS), max_size=3)

fuzz = settings(
    max_examples=400,
    deadline=10_000,  # ms; a hang, even on a busy machine
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def try_to_use(content: bytes) -> None:
    """Open these bytes as a model and read everything a loader would."""
    TARGET.write_bytes(content)
    try:
        with GGUFFile.open(TARGET) as file:
            config_from_metadata(file.metadata, file.tensors)
            for value in file.metadata.values():
                if not isinstance(value, bool | int | float):
                    list(value)
            for tensor in file.tensors.values():
                assert tensor.data.nbytes == tensor.size_bytes
                tensor.data.max()
    except PowerServeError as error:
        sentence = str(error)
        assert sentence.replace("\n", " ").isprintable() and len(sentence) < 1000, sentence


@fuzz
@given(BYTE_CHANGES, NUMBER_CHANGES)
def mutated_headers(byte_changes: list[tuple[int, int]], changes: list[tuple[int, int]]) -> None:
    content = bytearray(VALID)
    for position, byte in byte_changes:
        content[position] = byte
    for position, number in changes:
        content[position : position + 8] = struct.pack("<Q", number)
    try_to_use(bytes(content))


@fuzz
@given(st.integers(0, len(VALID)), st.integers(0, len(VALID)), st.binary(max_size=64))
def spliced_files(first: int, second: int, between: bytes) -> None:
    """A part is missing, repeated or replaced."""
    try_to_use(VALID[:first] + between + VALID[second:])


@fuzz
@given(st.binary(max_size=400), st.booleans())
def random_bytes(content: bytes, with_magic: bool) -> None:
    try_to_use(b"GGUF\3\0\0\0" + content if with_magic else content)


def limit_memory() -> None:
    """Let a giant allocation fail, where the system can do that."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, FileNotFoundError):
        return
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    limit_memory()
    mutated_headers()
    spliced_files()
    random_bytes()
