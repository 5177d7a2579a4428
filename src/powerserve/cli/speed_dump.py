"""The original's counts and times of a run, in the file that the variable `dump_file` names."""

from __future__ import annotations

import os
from pathlib import Path

from powerserve.engine.generation import Completion
from powerserve.speculative.options import SpeculationCounters
from powerserve.storage.copying import file_errors
from powerserve.storage.json_file import write_json

VARIABLE = "dump_file"


def dump_speed(completion: Completion, counters: SpeculationCounters | None) -> None:
    """Write the file if the variable is set: the counters of token trees, if there are any, else
    tokens and times in milliseconds.

    Raises UsageError if the file cannot be written.
    """
    name = os.environ.get(VARIABLE)
    if not name:
        return
    path = Path(name)
    with file_errors(f"{path} (of the variable {VARIABLE}) cannot be written"):
        write_json(path, _times(completion) if counters is None else counters.as_json())


def _times(completion: Completion) -> dict[str, float]:
    timings = completion.timings
    return {
        "prefill_tokens": completion.num_prompt_tokens - completion.num_cached_tokens,
        "prefill_time": round(1000 * timings.prefill_s, 3),
        "decode_tokens": max(0, len(completion.token_ids) - 1),
        "decode_time": round(1000 * timings.decode_s, 3),
    }
