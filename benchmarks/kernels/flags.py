"""Values of flags that several scripts have."""

from __future__ import annotations

from argparse import ArgumentTypeError

from contestants import KERNELS


def count(text: str) -> int:
    """argparse type: an integer >= 1."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def counts(text: str) -> tuple[int, ...]:
    """argparse type: `1,4,512`."""
    return tuple(map(count, text.split(",")))


def kernel_choices(text: str) -> list[str]:
    """argparse type: `native,ggml`."""
    names = text.split(",")
    for name in names:
        if name not in KERNELS:
            raise ArgumentTypeError(f"there are no kernels {name!r}, but {', '.join(KERNELS)}")
    return names
