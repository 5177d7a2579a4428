"""The tokens of a model: texts, ids, types and scores, from GGUF metadata.

Source of the keys: the GGUF specification, section “Tokenizer”
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from powerserve.core.errors import TokenizerError

Metadata = Mapping[str, Any]


class TokenType(IntEnum):
    """The values of `tokenizer.ggml.token_type`."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """All tokens of a model; read-only, so it may be shared between threads.

    `texts` are in the tokenizer's own spelling (“Ġ” or “▁” for a space). `types` is int32
    [vocab_size]; `scores` is float32 [vocab_size], or None where the file has none.
    """

    texts: Sequence[str]
    ids: Mapping[str, int]
    types: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32] | None

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> Vocabulary:
        """Read and check the token arrays; raises TokenizerError if they are inconsistent."""
        texts = string_array(metadata, "tokenizer.ggml.tokens")
        if not texts:
            raise TokenizerError("the model file's vocabulary is empty")
        types = _number_array(metadata, "tokenizer.ggml.token_type", len(texts), np.int32)
        scores = _number_array(metadata, "tokenizer.ggml.scores", len(texts), np.float32)
        if types is None:
            types = np.full(len(texts), TokenType.NORMAL, dtype=np.int32)
        return cls(texts, _ids_by_text(texts), types, scores)

    def __len__(self) -> int:
        return len(self.texts)

    def type_of(self, token_id: int) -> int:
        """The type of a token, one of TokenType's values or a value unknown to us."""
        return int(self.types[token_id])

    def ids_of_type(self, *types: TokenType) -> list[int]:
        """The ids of all tokens of the given types, ascending."""
        selected: list[int] = np.flatnonzero(np.isin(self.types, types)).tolist()
        return selected


def string_array(metadata: Metadata, key: str) -> list[str]:
    """Return the array of strings under `key` as a list; raises TokenizerError if it is not one."""
    value = metadata.get(key)
    if value is None:
        raise TokenizerError(f"the model file has no {key}, so text cannot be tokenized")
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise TokenizerError(f"{key} in the model file is not an array of strings")
    items = list(value)
    if items and not isinstance(items[0], str):
        raise TokenizerError(f"{key} in the model file is not an array of strings")
    return items


def _number_array(
    metadata: Metadata, key: str, length: int, dtype: type[np.generic]
) -> npt.NDArray[Any] | None:
    value = metadata.get(key)
    if value is None:
        return None
    try:
        array = np.asarray(value, dtype=dtype)
    except (TypeError, ValueError, OverflowError):
        raise TokenizerError(f"{key} in the model file is not an array of numbers") from None
    if array.shape != (length,):
        raise TokenizerError(
            f"{key} in the model file has {array.size} entries for {length} tokens"
        )
    return array


def _ids_by_text(texts: list[str]) -> dict[str, int]:
    """Map each text to its id; empty texts are renamed first, as converters leave several."""
    ids = dict(zip(texts, range(len(texts)), strict=True))
    if "" in ids:
        for index, text in enumerate(texts):
            if not text:
                texts[index] = f"[EMPTY_{index}]"
        ids = dict(zip(texts, range(len(texts)), strict=True))
    if len(ids) != len(texts):
        first = next(index for index, text in enumerate(texts) if ids[text] != index)
        raise TokenizerError(
            f"the model file's vocabulary has the token {texts[first]!r} twice, "
            f"as {first} and {ids[texts[first]]}"
        )
    return ids
