"""Builds of ggml for several generations of 64-bit ARM processors, of which the best is chosen.

One build for all would either crash on older phones (an unknown instruction ends the process) or
leave most of a newer one's speed unused. Each level has a folder of its own below a common one.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ArmLevel:
    """A set of instructions that a build may use."""

    name: str  # of its folder
    march: str  # the compiler's -march
    flags: frozenset[str]  # what Linux lists on a processor that has all of it


# Armv8.2 includes the atomic instructions of 8.1, which compilers then use unasked.
_ARMV8_2 = frozenset({"asimd", "atomics", "asimddp", "asimdhp"})
LEVELS = (  # best first
    ArmLevel("armv8.6", "armv8.2-a+dotprod+fp16+i8mm", _ARMV8_2 | {"i8mm"}),
    ArmLevel("armv8.2", "armv8.2-a+dotprod+fp16", _ARMV8_2),
    ArmLevel("armv8.0", "armv8-a", frozenset({"asimd"})),
)


def best_level_folder(parent: Path, cpu_flags: Collection[str]) -> Path | None:
    """The folder of the best build below `parent` that a processor with these flags can run."""
    for level in LEVELS:
        folder = parent / level.name
        if folder.is_dir() and level.flags <= set(cpu_flags):
            return folder
    return None
