"""The points that have been tried, one JSON object per line, under the original's names.

    {"params": {"draft_top_k": 15, "temperature": 1.5, …}, "stat": {"n_iterations": 210, …}}

Lines are appended as points are done, so that whatever stops a search costs one point at most.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import msgspec

from powerserve.core.errors import ConfigError, UsageError
from powerserve.speculative.options import SpeculationCounters, TreeParams
from powerserve.storage import atomic
from powerserve.storage.copying import file_errors
from powerserve.storage.progress import SILENT, Progress

_Count = Annotated[int, msgspec.Meta(ge=0)]
_PositiveCount = Annotated[int, msgspec.Meta(ge=1)]


class _Params(msgspec.Struct, rename={"top_k": "draft_top_k"}):
    draft_batch_size: int
    top_k: int
    temperature: float
    p_base: float
    max_fan_out: int
    min_prob: float
    early_stop: int


class _Stat(msgspec.Struct, rename=lambda name: name.replace("num_", "n_")):
    num_iterations: _PositiveCount
    num_generated_tokens: _PositiveCount
    num_draft_tokens: _Count
    num_accepted_tokens: _Count
    num_draft_forwards: _Count = msgspec.field(name="n_draft_times")


class _Line(msgspec.Struct):
    params: _Params
    stat: _Stat


class PointDatabase:
    """What each point counted over all prompts (`points`), and the file that keeps it."""

    def __init__(self, path: Path, progress: Progress = SILENT) -> None:
        """Read `path` if it exists; `progress` is told what is ignored.

        Raises ConfigError if the file cannot be read, or is damaged anywhere but in its last line,
        which a search that was killed may leave incomplete.
        """
        self.points: dict[TreeParams, SpeculationCounters] = {}
        self._path = path
        content = _read(path)
        self._is_sound = not content or content.endswith(b"\n")
        lines = content.splitlines()
        for number, line in enumerate(lines, 1):
            try:
                params, counters = _parse(line)
            except (ValueError, UsageError) as error:
                if number < len(lines):
                    raise ConfigError(
                        f"{path}: line {number} is damaged: {error}; remove it, and its point "
                        "will be tried again"
                    ) from None
                progress.note(f"warning: the last line of {path} is damaged and ignored")
                self._is_sound = False
            else:
                self.points[params] = counters

    def add(self, params: TreeParams, counters: SpeculationCounters) -> None:
        """Keep a point. Raises UsageError if it cannot be written."""
        self.points[params] = counters
        with file_errors(f"{self._path} cannot be written"):
            if self._is_sound:
                with self._path.open("ab") as file:
                    file.write(_line(params, counters))
            else:
                every = b"".join(_line(*point) for point in self.points.items())
                atomic.write_bytes(self._path, every)
                self._is_sound = True


def params_json(params: TreeParams) -> dict[str, int | float]:
    """Parameters under the original's names."""
    values = asdict(params)
    return {
        "draft_batch_size": values.pop("draft_batch_size"),
        "draft_top_k": values.pop("top_k"),
        **values,
        "early_stop": int(params.early_stop),
    }


def _line(params: TreeParams, counters: SpeculationCounters) -> bytes:
    point = {"params": params_json(params), "stat": counters.as_json()}
    return json.dumps(point).encode() + b"\n"


def _parse(line: bytes) -> tuple[TreeParams, SpeculationCounters]:
    """Raises msgspec's errors, which are ValueErrors, and UsageError for impossible parameters."""
    found = msgspec.json.decode(line, type=_Line)
    values = msgspec.structs.asdict(found.params) | {"early_stop": bool(found.params.early_stop)}
    return TreeParams(**values), SpeculationCounters(**msgspec.structs.asdict(found.stat))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
