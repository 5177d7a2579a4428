"""Cost curves on disk: measured once for each model, device and number of threads."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from powerserve.core.errors import ConfigError
from powerserve.speculative.cost_model import (
    CostCurve,
    StepTimer,
    measure_compiled,
    measure_curve,
)
from powerserve.storage.json_file import read_json, write_json

MEASURING_BUDGET_S = 2.0


@dataclass(frozen=True, slots=True)
class CurveKey:
    """What a curve depends on."""

    weights: Path
    device: str  # backend, library and threads
    machine: str  # the processor
    kv_type: str

    @property
    def file_name(self) -> str:
        """A name for the curve's file; another file under the weights' path changes it."""
        status = self.weights.stat()
        facts = (
            self.weights.resolve(), status.st_size, status.st_mtime_ns,
            self.device, self.machine, self.kv_type,
        )  # fmt: skip
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:24] + ".json"


class CurveSource:
    """The cost curve of one model: from disk, or measured when it is first needed."""

    def __init__(
        self,
        folder: Path | None = None,
        key: CurveKey | None = None,
        batch_sizes: Sequence[int] = (),
    ) -> None:
        """Without folder and key the curve is not kept.

        `batch_sizes`: what the model was compiled for, if it was.
        """
        self._batch_sizes = batch_sizes
        self._file = None if folder is None or key is None else folder / key.file_name
        self.curve = None if self._file is None else _read(self._file)

    def measure(self, time_step: StepTimer, max_tokens: int) -> CostCurve:
        """Measure the curve and keep it; a folder that cannot be written is no error."""
        self.curve = self._measured(time_step, max_tokens)
        if self._file is not None:
            try:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                write_json(self._file, asdict(self.curve))
            except OSError:
                pass  # it will be measured again
        return self.curve

    def _measured(self, time_step: StepTimer, max_tokens: int) -> CostCurve:
        if self._batch_sizes:
            return measure_compiled(time_step, MEASURING_BUDGET_S, self._batch_sizes)
        return measure_curve(time_step, MEASURING_BUDGET_S, max_tokens)


def _read(file: Path) -> CostCurve | None:
    """A stored curve; None if there is none, or none that makes sense."""
    try:
        curve = read_json(file, CostCurve)
    except ConfigError:
        return None
    sizes, seconds = curve.sizes, curve.seconds
    sound = (
        len(sizes) == len(seconds) >= 2
        and _ascends_from_one(sizes)
        and _ascends_from_one(curve.tree_sizes)
        and min(seconds) > 0
        and curve.seconds_per_cell >= 0
    )
    return curve if sound else None


def _ascends_from_one(sizes: tuple[int, ...]) -> bool:
    return sizes[:1] == (1,) and all(a < b for a, b in pairwise(sizes))
