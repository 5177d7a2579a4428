"""Metadata of a new GGUF file: ordinary Python values, and the bytes they have in the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from struct import pack

from powerserve.storage.gguf_writer import string_value, strings_value, uint32_value

Values = Mapping[str, object]

_INT32, _FLOAT32, _BOOL, _ARRAY = 5, 6, 7, 9  # GGUF value types


def encoded(values: Values) -> dict[str, bytes]:
    """Each value as GGUF readers expect it.

    Counts and ids become uint32, numbers float32; in arrays, whole numbers become int32.
    """
    return {key: _encode(value) for key, value in values.items()}


def _encode(value: object) -> bytes:
    match value:
        case bool():
            return pack("<I?", _BOOL, value)
        case int():
            return uint32_value(value)
        case float():
            return pack("<If", _FLOAT32, value)
        case str():
            return string_value(value)
        case list():
            return _encode_array(value)
    raise TypeError(f"metadata cannot hold {type(value).__name__}")


def _encode_array(items: Sequence[object]) -> bytes:
    count = len(items)
    if all(isinstance(item, str) for item in items):
        return strings_value([str(item) for item in items])
    if all(isinstance(item, int) for item in items):
        return pack(f"<IIQ{count}i", _ARRAY, _INT32, count, *items)
    return pack(f"<IIQ{count}f", _ARRAY, _FLOAT32, count, *items)
