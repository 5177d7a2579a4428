"""The lowered values of a model's graph: one tensor or several that make it up."""

from __future__ import annotations

from dataclasses import dataclass

from powerserve.convert.qnn.float_parts import Indices


@dataclass(frozen=True, slots=True)
class Piece:
    """Features `columns` of a value as one tensor [B, len(columns)]: a head, or a precision.

    Attributes:
        name: of the tensor.
        columns: which features of the value.
        is_float: what is multiplied with it must not be quantised.
        gain: what it was multiplied with, for weights to be divided by.
    """

    name: str
    columns: Indices
    is_float: bool = False
    gain: float = 1.0


def whole(value: list[Piece]) -> Piece:
    """The only piece of a value that is never split, as the residual stream."""
    (piece,) = value
    return piece


def suffix(is_float: bool) -> str:
    """What tells the names of pieces apart."""
    return ".float" if is_float else ""


def numbered(name: str, index: int, count: int) -> str:
    """The name of one of `count` pieces."""
    return name if count == 1 else f"{name}_{index}"
