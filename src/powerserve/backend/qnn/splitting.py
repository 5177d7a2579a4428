"""Steps of any size as runs of the sizes that graphs were compiled for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Run(NamedTuple):
    """Tokens start … stop - 1 of a step on the graphs for `batch_size`."""

    start: int
    stop: int
    batch_size: int


def split(num_tokens: int, batch_sizes: Sequence[int]) -> Iterator[Run]:
    """Cut a step: the smallest size that holds what is left, else the largest (ascending sizes).

    The NPU reads all weights in each run whatever its size, so one padded run beats several exact
    ones. The original PowerServe does the same.
    """
    start = 0
    while start < num_tokens:
        rest = num_tokens - start
        batch_size = next((size for size in batch_sizes if size >= rest), batch_sizes[-1])
        yield Run(start, min(start + batch_size, num_tokens), batch_size)
        start += batch_size
