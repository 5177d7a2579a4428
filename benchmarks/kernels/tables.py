"""The results of one model as markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from memory import MEMORY
from rounds import Samples

from powerserve.cli.markdown import markdown_table

MEMORY_READ, WEIGHTS_READ = "reading memory", "reading as much as the weights"
PREFILL, DECODE = "prefill", "decode"
UNKNOWN = "–"


def step_test(num_tokens: int) -> str:
    """The name of a point of the curve."""
    return f"step of {num_tokens}"


@dataclass(frozen=True, slots=True)
class Results:
    """What was measured on one model. The first contestant is the one that the others meet."""

    model: str
    prefill_tokens: int
    matrix_bytes: int  # read by each step
    memory_bytes: int  # read to see how fast memory is
    sizes: tuple[int, ...]  # tokens of the curve's steps
    systems: Mapping[str, str]  # what each contestant says about itself
    next_ids: Mapping[str, Sequence[int]]  # after each token of a text; empty: not told
    samples: Samples

    def print_tables(self) -> None:
        """Speeds, ratios, and the curve, as far as they were measured."""
        print(f"\n## {self.model}\n")
        print(f"- weights that a step multiplies with: {self.matrix_bytes / 1e6:,.1f} MB")
        for name, system in self.systems.items():
            print(f"- {name}: {system}")
        for table in (self._memory_rows, self._speed_rows, self._ratio_rows, self._curve_rows):
            if len(rows := list(table())) > 1:
                print("\n" + markdown_table(rows), flush=True)

    def _memory_rows(self) -> Iterator[list[str]]:
        yield ["reading without computing", "MB", "GB/s"]
        for test, size_bytes in (
            (MEMORY_READ, self.memory_bytes),
            (WEIGHTS_READ, self.matrix_bytes),
        ):
            if self.samples.has(test, MEMORY):
                rate = size_bytes / self.samples.median_s(test, MEMORY)
                yield [test, f"{size_bytes / 1e6:,.1f}", f"{rate / 1e9:.1f}"]

    def _speed_rows(self) -> Iterator[list[str]]:
        yield [
            "", f"prefill {self.prefill_tokens}, tokens/s", "decode, tokens/s",
            "decode reads, GB/s", "of memory's speed", "same next token",
        ]  # fmt: skip
        for name in self._with(DECODE):
            prefill_s, decode_s = (self.samples.median_s(test, name) for test in (PREFILL, DECODE))
            rate = self.matrix_bytes / decode_s
            yield [
                name,
                f"{self.prefill_tokens / prefill_s:,.1f}",
                f"{1 / decode_s:,.1f}",
                f"{rate / 1e9:.1f}",
                self._share_of_memory(rate),
                self._agreement(name),
            ]

    def _ratio_rows(self) -> Iterator[list[str]]:
        first, *others = self._with(DECODE) or [""]
        yield [f"{first}, times as fast as", PREFILL, "in the rounds", DECODE, "in the rounds"]
        for other in others:
            cells = []
            for test in (PREFILL, DECODE):
                ratios = self.samples.speedups(test, first, other)
                cells += [f"{statistics.median(ratios):.2f}", _listed(ratios)]
            yield [other, *cells]

    def _curve_rows(self) -> Iterator[list[str]]:
        """Milliseconds, and in brackets the multiple of a step of one token."""
        sizes = [size for size in self.sizes if self._with(step_test(size))]
        yield ["ms per step, tokens:", *map(str, sizes)]
        for name in self._with(step_test(sizes[-1])) if sizes else []:
            steps_s = [self.samples.median_s(step_test(size), name) for size in sizes]
            yield [name, *(f"{1000 * step:.2f} ({step / steps_s[0]:.2f})" for step in steps_s)]

    def _with(self, test: str) -> list[str]:
        return [name for name in self.systems if self.samples.has(test, name)]

    def _share_of_memory(self, bytes_per_s: float) -> str:
        if not self.samples.has(MEMORY_READ, MEMORY):
            return UNKNOWN
        speed = self.memory_bytes / self.samples.median_s(MEMORY_READ, MEMORY)
        return f"{bytes_per_s / speed:.0%}"

    def _agreement(self, name: str) -> str:
        """After how many tokens of the text the first contestant expects the same next one."""
        own, first = self.next_ids[name], next(iter(self.next_ids.values()))
        if not own:
            return UNKNOWN
        return f"{sum(a == b for a, b in zip(own, first, strict=True))} of {len(first)}"


def _listed(ratios: Iterable[float]) -> str:
    return " ".join(f"{ratio:.2f}" for ratio in ratios)
