"""hparams.json: how many threads, how large a batch, and how to sample.

The keys and both sets of defaults are those of the original PowerServe: what a missing key means
(the defaults of the classes here) differs from what `powerserve create` writes (`GREEDY`).
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from powerserve.storage.json_file import read_json, write_json

RANDOM_SEED = 2**64 - 1  # the original's "draw a new seed each time"

AtLeastZero = Meta(ge=0)
AtLeastOne = Meta(ge=1)


@dataclass(frozen=True, slots=True)
class SamplerHparams:
    """The sampling chain's settings."""

    seed: Annotated[int, Meta(ge=-1)] = RANDOM_SEED
    temperature: Annotated[float, AtLeastZero] = 0.80
    top_p: Annotated[float, Meta(ge=0, le=1)] = 0.95
    top_k: Annotated[int, AtLeastZero] = 40  # candidates; 0 keeps the whole vocabulary
    min_keep: Annotated[int, AtLeastZero] = 0  # candidates
    penalty_last_n: Annotated[int, Meta(ge=-1)] = 64  # tokens; -1 is the whole sequence
    penalty_repeat: Annotated[float, Meta(gt=0)] = 1.0
    penalty_freq: float = 0.0
    penalty_present: float = 0.0
    penalize_nl: bool = False
    ignore_eos: bool = False

    @property
    def fixed_seed(self) -> int | None:
        """The seed (uint64), or None where the file asks for a random one (-1 or 2^64 - 1)."""
        seed = self.seed % 2**64
        return None if seed == RANDOM_SEED else seed


@dataclass(frozen=True, slots=True)
class Hparams:
    """What hparams.json says; a missing key has the value given here."""

    n_threads: Annotated[int, AtLeastOne] = 4
    batch_size: Annotated[int, AtLeastOne] = 128  # tokens of one prefill step
    sampler: SamplerHparams = field(default_factory=SamplerHparams)

    @property
    def usable_threads(self) -> int:
        """`n_threads`, but not more than this machine has processors."""
        return min(self.n_threads, os.cpu_count() or self.n_threads)


GREEDY = Hparams(
    sampler=SamplerHparams(
        seed=0,
        temperature=1.0,
        top_p=1.0,
        top_k=1,
        penalty_repeat=1,  # whole numbers, as the original writes them into the file
        penalty_freq=0,
        penalty_present=0,
    )
)


def read_hparams(path: Path) -> Hparams:
    """Read an hparams.json. Raises ConfigError."""
    return read_json(path, Hparams)


def write_hparams(path: Path, hparams: Hparams) -> None:
    """Write an hparams.json. Raises OSError."""
    write_json(path, asdict(hparams))
