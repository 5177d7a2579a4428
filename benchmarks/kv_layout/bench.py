"""What does attention cost in each layout of the KV cache?

    python bench.py                      every experiment, Markdown to standard output
    python bench.py decode prefill       only these
    python bench.py --threads 2 decode   wall time of two threads instead of CPU time of one

Needs numpy and libggml-python; all experiments take about an hour and 4 GB. Variants are
interleaved (A B C A B C …). With one thread a figure is the median CPU time of the calling thread,
which other processes on the machine hardly disturb. With more threads it is the shortest wall time,
because ggml's threads spin at every operation's end and a core taken away by another process
multiplies the time of a whole step.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np
from binding import F16, Q8_0, TYPE_NAMES, Ggml, TensorStruct
from step import (
    QWEN,
    SMOLLM2,
    Cache,
    Shape,
    Slice,
    Step,
    Weights,
    contiguous,
    fill_mask,
    interleaved,
    padded,
)

SHAPES = (SMOLLM2, QWEN)


class Bench:
    """The library plus the way to time it."""

    def __init__(self, num_threads: int, seconds: float) -> None:
        self.g = Ggml(num_threads)
        self._seconds = seconds
        self._clock = time.thread_time if num_threads == 1 else time.perf_counter
        self._pick = statistics.median if num_threads == 1 else min

    def times_ms(self, runs: Mapping[str, Callable[[], object]]) -> dict[str, float]:
        """One figure a run, of rounds that fill about `seconds`; at least 3 rounds."""
        for run in runs.values():
            run()
        taken: dict[str, list[float]] = {name: [] for name in runs}
        end = time.perf_counter() + self._seconds
        while time.perf_counter() < end or len(next(iter(taken.values()))) < 3:
            for name, run in runs.items():
                start = self._clock()
                run()
                taken[name].append((self._clock() - start) * 1e3)
        return {name: self._pick(values) for name, values in taken.items()}

    def steps_ms(self, steps: Mapping[str, Step]) -> dict[str, float]:
        times = self.times_ms({name: step.run for name, step in steps.items()})
        for step in steps.values():
            step.close()
        return times


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(_cell(value) for value in row) + " |", flush=True)
    print()


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if value >= 100 else f"{value:.2f}" if value < 10 else f"{value:.1f}"
    return str(value)


def decode(b: Bench) -> None:
    """One token for each of S sequences: attention of all layers, ms."""
    for kv_type in (F16, Q8_0):
        for shape in SHAPES:
            print(f"### Decode, attention only, ms: {shape.name}, {TYPE_NAMES[kv_type]}\n")
            table(
                ["sequences", "cells each", "pool", "pool, interleaved", "streams", "slices",
                 "slices+cpy", "slices, no mask", "pool / slices"],
                _decode_rows(b, shape, kv_type),
            )  # fmt: skip


def _decode_rows(b: Bench, shape: Shape, kv_type: int) -> Iterable[Sequence[object]]:
    cache = Cache(b.g, shape, 65536, kv_type)
    for num_cells in (256, 2048, 4096):
        for num_sequences in (1, 4, 16):
            apart = contiguous(num_sequences, num_cells)
            steps = {
                "pool": Step(cache, apart, "pool"),
                "interleaved": Step(cache, interleaved(num_sequences, num_cells), "pool"),
            }
            for variant in ("streams", "slices", "slices+cpy", "slices, no mask"):
                steps[variant] = Step(cache, apart, variant)
            t = b.steps_ms(steps)
            yield [num_sequences, num_cells, *t.values(), t["pool"] / t["slices"]]
    cache.close()


def whole(b: Bench) -> None:
    """One token for each of S sequences: the whole model's step, ms."""
    for shape in SHAPES:
        weights = Weights(b.g, shape)
        print(f"### Decode, whole step with Q4_0 weights, ms: {shape.name}, F16\n")
        table(
            ["sequences", "cells each", "pool", "streams", "slices", "pool / slices"],
            _whole_rows(b, shape, weights),
        )


def _whole_rows(b: Bench, shape: Shape, weights: Weights) -> Iterable[Sequence[object]]:
    cache = Cache(b.g, shape, 65536)
    for num_cells in (256, 2048, 4096):
        for num_sequences in (1, 4, 16):
            apart = contiguous(num_sequences, num_cells)
            t = b.steps_ms(
                {v: Step(cache, apart, v, weights) for v in ("pool", "streams", "slices")}
            )
            yield [num_sequences, num_cells, *t.values(), t["pool"] / t["slices"]]
    cache.close()


def idle(b: Bench) -> None:
    """One sequence decodes while others only hold cells."""
    for shape in SHAPES:
        print(f"### One sequence of 2,048 cells in a pool others fill, ms: {shape.name}, F16\n")
        table(
            ["cells of others", "pool, first", "pool, last", "slices", "worst / slices"],
            _idle_rows(b, shape),
        )


def _idle_rows(b: Bench, shape: Shape) -> Iterable[Sequence[object]]:
    cache = Cache(b.g, shape, 65536)
    for others in (0, 2048, 6144, 14336, 63488):
        end = 2048 + others
        t = b.steps_ms(
            {
                "first": Step(cache, [Slice(1, 0, 2048)], "pool", num_cells=end),
                "last": Step(cache, [Slice(1, others, end)], "pool"),
                "slices": Step(cache, [Slice(1, others, end)], "slices"),
            }
        )
        yield [others, *t.values(), max(t["first"], t["last"]) / t["slices"]]
    cache.close()


def prefill(b: Bench) -> None:
    """A chunk of 512 prompt tokens of one sequence while others hold cells."""
    for kv_type in (F16, Q8_0):
        for shape in SHAPES:
            kind = TYPE_NAMES[kv_type]
            print(f"### Prefill of 512 tokens, attention only, ms: {shape.name}, {kind}\n")
            table(
                ["own context", "cells of others", "pool", "slices", "pool / slices", "mask, MB"],
                _prefill_rows(b, shape, kv_type),
            )


def _prefill_rows(b: Bench, shape: Shape, kv_type: int) -> Iterable[Sequence[object]]:
    cache = Cache(b.g, shape, 65536, kv_type)
    for own in (0, 2048):
        for others in (0, 16384, 61440) if kv_type == F16 else (0, 16384):
            chunk = [Slice(512, others, others + own + 512)]
            steps = {v: Step(cache, chunk, v) for v in ("pool", "slices")}
            t = b.steps_ms(steps)
            size = 512 * padded(others + own + 512) * 2 / 1e6
            yield [own, others, *t.values(), t["pool"] / t["slices"], size]
    cache.close()


def mixed(b: Bench) -> None:
    """A chunk of 512 prompt tokens in the same step as decoding sequences."""
    print("### 512 prompt tokens beside decoding sequences of 1,024 cells, attention only, ms\n")
    header = ["model", "decoding sequences", "pool", "slices", "pool / slices"]
    table(header, [_mixed_row(b, shape, n) for shape in SHAPES for n in (1, 4, 15)])


def _mixed_row(b: Bench, shape: Shape, num_decoding: int) -> Sequence[object]:
    start = num_decoding * 1024
    slices = [*contiguous(num_decoding, 1024), Slice(512, start, start + 512)]
    cache = Cache(b.g, shape, start + 512)
    t = b.steps_ms({v: Step(cache, slices, v) for v in ("pool", "slices")})
    cache.close()
    return [shape.name, num_decoding, *t.values(), t["pool"] / t["slices"]]


def rows(b: Bench) -> None:
    """Where ggml changes from its row path to its tiled path, and what folding heads gains."""
    for shape in SHAPES:
        print(f"### n tokens of one sequence over 2,048 cells, attention only, ms: {shape.name}\n")
        caches = [Cache(b.g, shape, 2048, t) for t in (F16, Q8_0)]
        table(
            ["tokens", "F16", "F16, folded", "Q8_0", "F16 / folded", "Q8_0 / F16"],
            _token_rows(b, *caches),
        )
        for cache in caches:
            cache.close()


def _token_rows(b: Bench, f16: Cache, q8: Cache) -> Iterable[Sequence[object]]:
    for n in (1, 2, 4, 8, 12, 16, 24, 32, 48, 63, 64, 65, 96, 128, 256, 512):
        chunk = [Slice(n, 0, 2048)]
        steps = {
            "f16": Step(f16, chunk, "slices"),
            "folded": Step(f16, chunk, "folded"),
            "q8": Step(q8, chunk, "slices"),
        }
        t = b.steps_ms(steps)
        yield [n, *t.values(), t["f16"] / t["folded"], t["q8"] / t["f16"]]


def masks(b: Bench) -> None:
    """What filling masks costs in numpy, once a step."""
    print("### Filling masks in numpy, ms\n")
    low = np.float16(-np.inf)
    pool_16, ranges_16 = np.empty((16, 65536), np.float16), np.empty((16, 4096), np.float16)
    pool_512, range_512 = np.empty((512, 65536), np.float16), np.empty((512, 4608), np.float16)
    cells = [np.arange(i * 4096, (i + 1) * 4096) for i in range(16)]
    own = np.arange(61000, 65096)
    triangle = np.where(np.tri(512, dtype=bool), np.float16(0), low)

    def by_index() -> None:
        pool_16.fill(low)
        for row, seen in zip(pool_16, cells, strict=True):
            row[seen] = 0

    def by_range() -> None:
        ranges_16.fill(low)
        for row in ranges_16:
            row[:4000] = 0

    def one_column() -> None:
        ranges_16[np.arange(16), 4000] = 0

    def chunk_in_pool() -> None:
        pool_512.fill(low)
        pool_512[:, own] = 0
        pool_512[:, 65024:] = triangle

    def chunk_in_range() -> None:
        range_512.fill(low)
        range_512[:, :4096] = 0
        range_512[:, 4096:] = triangle

    t = b.times_ms(
        {
            "16 decoding, pool of 65,536 cells, index arrays (2 MB)": by_index,
            "16 decoding, own range of 4,096 cells, slices (128 kB)": by_range,
            "16 decoding, own range, only the new token's column": one_column,
            "chunk of 512, pool of 65,536 cells (64 MB)": chunk_in_pool,
            "chunk of 512, own range of 4,608 cells (4.5 MB)": chunk_in_range,
        }
    )
    table(["mask", "ms"], t.items())


def copy(b: Bench) -> None:
    """A shared prefix of 2,000 cells: copied, or computed again."""
    print("### A prefix of 2,000 cells, all layers\n")
    result = [_copy_row(b, shape) for shape in SHAPES]
    table(
        ["model", "MB", "copy, ms", "copy, scattered cells, ms", "prefill, ms", "prefill / copy"],
        result,
    )


def _copy_row(b: Bench, shape: Shape) -> Sequence[object]:
    cache, num_cells = Cache(b.g, shape, 4096), 2000
    layers = [b.g.array(t, np.uint8).reshape(4096, -1).view(np.uint64) for t in cache.k + cache.v]
    scattered = np.random.default_rng(0).permutation(2048)[:num_cells]

    def copy_range() -> None:
        for layer in layers:
            layer[2048 : 2048 + num_cells] = layer[:num_cells]

    def copy_scattered() -> None:
        for layer in layers:
            layer[2048 : 2048 + num_cells] = layer[scattered]

    t = b.times_ms({"range": copy_range, "scattered": copy_scattered})
    weights, bounds = Weights(b.g, shape), (0, 512, 1024, 1536, num_cells)
    chunks = [Slice(end - start, 0, end) for start, end in pairwise(bounds)]
    steps = {str(chunk.stop): Step(cache, [chunk], "slices", weights) for chunk in chunks}
    prefill_ms = sum(b.steps_ms(steps).values())
    size = sum(layer[:num_cells].nbytes for layer in layers) / 1e6
    cache.close()
    return [shape.name, size, *t.values(), prefill_ms, f"{prefill_ms / t['range']:.0f}"]


def host(b: Bench) -> None:
    """What Python pays: building a graph of per-slice calls, or moving the views of one."""
    print("### Python's share: a graph's construction, and moving its views instead, ms\n")
    result = [_host_row(b, shape, n) for shape in SHAPES for n in (1, 4, 16)]
    table(["model", "sequences", "build, pool", "build, slices", "move the views"], result)


def _host_row(b: Bench, shape: Shape, num_sequences: int) -> Sequence[object]:
    cache, slices = Cache(b.g, shape, 16384), contiguous(num_sequences, 1024)
    for num_tokens in (1, 3, 64):
        _check_moved_views(cache, num_sequences, num_tokens)
    step = Step(cache, slices, "slices")
    move = ViewMover(step)
    firsts, sizes = np.arange(num_sequences) * 512, np.full(num_sequences, 1024)
    t = b.times_ms(
        {
            "pool": lambda: Step(cache, slices, "pool").close(),
            "slices": lambda: Step(cache, slices, "slices").close(),
            "move": lambda: move(firsts, sizes),
        }
    )
    step.close()
    cache.close()
    return [shape.name, num_sequences, *t.values()]


def _check_moved_views(cache: Cache, num_sequences: int, num_tokens: int) -> None:
    """A graph whose views were moved gives the bits of a graph built for the new place."""
    step = Step(cache, contiguous(num_sequences, 1024, num_tokens), "slices")
    sizes = 700 - 40 * np.arange(num_sequences)
    firsts = 5 + 700 * np.arange(num_sequences)
    moved = [
        Slice(num_tokens, int(first), int(first + size))
        for first, size in zip(firsts, sizes, strict=True)
    ]
    ViewMover(step)(firsts, sizes)
    for mask, piece in zip(step.mask_arrays, moved, strict=True):
        fill_mask(mask[:, : piece.stop - piece.first], piece, piece.first)
    rebuilt = Step(cache, moved, "slices")
    step.run()
    rebuilt.run()
    if not np.array_equal(step.output, rebuilt.output):
        raise AssertionError("a graph whose views were moved differs from a rebuilt one")
    step.close()
    rebuilt.close()


class ViewMover:
    """Points the K and V views of a built graph at other ranges of cells, all layers at once.

    The CPU backend reads only `data`, `ne` and `nb` of a view, so writing `data` and `ne[1]` moves
    it; the mask keeps its row stride and must be wide enough. One scatter into tensor headers.
    """

    def __init__(self, step: Step) -> None:
        self._cell_bytes = cell_bytes = step.cache.cell_bytes
        headers = np.array(step.views, np.int64)  # [layers, slices, 2]
        origin = int(headers.min())
        size = int(headers.max()) - origin + ctypes.sizeof(TensorStruct)
        memory = (ctypes.c_char * size).from_address(origin)
        self._words = np.frombuffer(memory, np.int64)
        self._data = (headers - origin + TensorStruct.data.offset) // 8
        self._length = (headers - origin + TensorStruct.ne.offset) // 8 + 1
        first = np.array([s.first for s in step.slices])
        self._bases = self._words[self._data] - first[None, :, None] * cell_bytes

    def __call__(self, firsts: np.ndarray, sizes: np.ndarray) -> None:
        self._words[self._data] = self._bases + (firsts * self._cell_bytes)[None, :, None]
        self._words[self._length] = sizes[None, :, None]


_ALL = (decode, whole, idle, prefill, mixed, rows, masks, copy, host)
EXPERIMENTS = {f.__name__: f for f in _ALL}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiments", nargs="*", help=f"of: {', '.join(EXPERIMENTS)}")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each row of a table")
    args = parser.parse_args()
    if unknown := set(args.experiments) - set(EXPERIMENTS):
        parser.error(f"no such experiment: {', '.join(sorted(unknown))}")
    bench = Bench(args.threads, args.seconds)
    print(f"ggml {bench.g.version().decode()}, {args.threads} thread(s)\n")
    for name in args.experiments or EXPERIMENTS:
        EXPERIMENTS[name](bench)


if __name__ == "__main__":
    main()
