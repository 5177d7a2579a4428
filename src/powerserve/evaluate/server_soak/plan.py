"""What a soak test runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from powerserve.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class SoakPlan:
    """How long, how many clients, on which models. Raises UsageError for what cannot be.

    `folder` holds two models or more, as GGUF files with a chat template. With `memory_gib` the
    server may have no more than that for models, so that they have to make way for each other.
    """

    folder: Path
    duration_s: float
    num_clients: int = 8
    seed: int = 0
    memory_gib: float | None = None
    max_body_bytes: int = 1 << 20
    phase_s: tuple[float, float] = (4.0, 20.0)  # from one favourite model to the next

    def __post_init__(self) -> None:
        if len(self.models) < 2:
            raise UsageError(f"a soak test needs two models in {self.folder}, as GGUF files")

    @property
    def models(self) -> tuple[str, ...]:
        """The models' names."""
        return tuple(sorted(path.stem for path in self.folder.glob("*.gguf")))

    @property
    def flags(self) -> tuple[str, ...]:
        """Those of `powerserve serve`: small bounds, so that clients meet them.

        One thread, because several wait for each other where clients take the processor, too.
        """
        sizes = (
            "--parallel",
            "4",
            "--max-queue",
            "6",
            "-c",
            "1024",
            "--cache-tokens",
            "3072",
            "-t",
            "1",
        )
        limits = ("--max-tokens", "256", "--max-body-mib", str(self.max_body_bytes >> 20))
        memory = () if self.memory_gib is None else ("--memory-gib", str(self.memory_gib))
        return ("-d", str(self.folder), "--allow-pull", *sizes, *limits, *memory)
