"""SentencePiece's `tokenizer.model`, read without its library.

The file is a protocol buffer, and six of its fields matter: a dependency with native code would be
out of proportion. Sources: sentencepiece_model.proto of https://github.com/google/sentencepiece and
https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct
from typing import TypeVar

from powerserve.convert.vocabulary.files import SENTENCE_PIECE_FILE
from powerserve.convert.vocabulary.tokens import Token
from powerserve.core.errors import TokenizerError, UnsupportedModelError
from powerserve.tokenizer.vocabulary import TokenType

# Field numbers, by message.
_MODEL_PIECE, _MODEL_TRAINER, _MODEL_NORMALIZER = 1, 2, 3
_PIECE_TEXT, _PIECE_SCORE, _PIECE_TYPE = 1, 2, 3
_TRAINER_MODEL_TYPE = 3
_NORMALIZER_CHARS_MAP, _NORMALIZER_ADD_PREFIX = 2, 3

_BPE = 2  # TrainerSpec.ModelType
_MODEL_TYPES = {1: "unigram", _BPE: "BPE", 3: "word", 4: "character"}
_MAX_VARINT_BYTES = 10
_FLOAT = Struct("<f")
_FIXED_SIZES = {1: 8, 5: 4}  # by wire type

Value = int | bytes
T = TypeVar("T", int, bytes)


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """What a vocabulary needs of a SentencePiece model."""

    tokens: dict[int, Token]
    adds_space_prefix: bool
    normalises: bool  # beyond spaces: maps characters to others


def parse_sentence_piece(data: bytes) -> SentencePieceModel:
    """Read a `tokenizer.model`.

    Raises TokenizerError if it is none, UnsupportedModelError if it is not of type BPE.
    """
    if not data.startswith(b"\x0a"):  # the tag of the first piece
        raise TokenizerError(f"{SENTENCE_PIECE_FILE} is not a SentencePiece model")
    pieces: list[bytes] = []
    trainer = normalizer = b""
    for number, value in _fields(data):
        if number == _MODEL_PIECE:
            pieces.append(_of_type(value, bytes))
        elif number == _MODEL_TRAINER:
            trainer = _of_type(value, bytes)
        elif number == _MODEL_NORMALIZER:
            normalizer = _of_type(value, bytes)
    _check_type(trainer)
    rules = dict(_fields(normalizer))
    return SentencePieceModel(
        tokens=dict(enumerate(map(_token, pieces))),
        adds_space_prefix=bool(rules.get(_NORMALIZER_ADD_PREFIX, True)),
        normalises=bool(rules.get(_NORMALIZER_CHARS_MAP)),
    )


def _token(piece: bytes) -> Token:
    fields = dict(_fields(piece))
    try:
        return Token(
            _of_type(fields.get(_PIECE_TEXT, b""), bytes).decode(),
            TokenType(_of_type(fields.get(_PIECE_TYPE, TokenType.NORMAL), int)),
            _FLOAT.unpack(_of_type(fields.get(_PIECE_SCORE, bytes(_FLOAT.size)), bytes))[0],
        )
    except ValueError:  # not UTF-8, or a type of piece that does not exist
        raise _damaged() from None


def _check_type(trainer: bytes) -> None:
    number = _of_type(dict(_fields(trainer)).get(_TRAINER_MODEL_TYPE, 1), int)
    if number != _BPE:
        raise UnsupportedModelError(
            f"{SENTENCE_PIECE_FILE} is a SentencePiece model of type "
            f"{_MODEL_TYPES.get(number, number)}; only BPE is supported"
        )


def _fields(message: bytes) -> Iterator[tuple[int, Value]]:
    """The fields of a message: numbers as int, everything else as its bytes."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire_type == 2:
            size, position = _varint(message, position)
        elif wire_type in _FIXED_SIZES:
            size = _FIXED_SIZES[wire_type]
        else:
            raise _damaged()
        if position + size > len(message):
            raise _damaged()
        yield number, message[position : position + size]
        position += size


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """A number of seven bits per byte, lowest first, and the position after it."""
    value = 0
    for index, byte in enumerate(message[position : position + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position + index + 1
    raise _damaged()


def _of_type(value: Value, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise _damaged()
    return value


def _damaged() -> TokenizerError:
    return TokenizerError(f"{SENTENCE_PIECE_FILE} is damaged or no SentencePiece model")
