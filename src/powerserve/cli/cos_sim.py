"""The cosine similarity of two text files with one number per line."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt

from powerserve.core.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the original's two flags."""
    parser.add_argument("--f1", type=Path, required=True, metavar="FILE", help="the first file")
    parser.add_argument("--f2", type=Path, required=True, metavar="FILE", help="the second file")


def execute(arguments: argparse.Namespace) -> int:
    """Print the similarity."""
    first, second = read_numbers(arguments.f1), read_numbers(arguments.f2)
    if first.size != second.size:
        raise UsageError(
            f"{arguments.f1} has {first.size} numbers and {arguments.f2} has {second.size}: "
            "only lists of one length can be compared"
        )
    print(f"cosine similarity: {cosine_similarity(first, second):.9f}")
    return 0


def read_numbers(path: Path) -> npt.NDArray[np.float64]:
    """The numbers of a file; empty lines are skipped. Raises UsageError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not a text file") from None
    return np.array([_number(path, index, line) for index, line in enumerate(lines, 1) if line])


def cosine_similarity(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> float:
    """From -1 to 1; raises UsageError if a vector is empty or zero."""
    largest = [float(np.abs(vector).max(initial=0)) for vector in (first, second)]
    if 0 in largest:
        raise UsageError("a list without a number other than 0 has no direction to compare")
    a, b = first / largest[0], second / largest[1]  # so that no square is too large or too small
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def _number(path: Path, index: int, line: str) -> float:
    try:
        value = float(line)
    except ValueError:
        raise UsageError(f"{path}: line {index} is {line[:40]!r}, not a number") from None
    if not np.isfinite(value):
        raise UsageError(f"{path}: line {index} is {line.strip()}, which cannot be compared")
    return value
