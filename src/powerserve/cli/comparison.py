"""Measure the prebuilt ggml against what was built on this machine: `powerserve doctor --measure`.

The contestants are the wheel's ggml, this machine's own, and PowerServe's kernels with the latter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from powerserve.backend.ggml import locate
from powerserve.backend.ggml.kernels.locate import kernel_library
from powerserve.core.errors import BackendError

PROMPT = "The quick brown fox jumps over the lazy dog. " * 40  # some 400 tokens
NUM_TOKENS = 48
ROUNDS = 3  # the best counts: disturbances only ever make a run slower
TIMEOUT_S = 600


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second."""

    prefill: float
    decode: float


@dataclass(frozen=True, slots=True)
class Contestant:
    """What a run is made with."""

    ggml: Path  # folder
    kernels: str  # as `--kernels` takes it


def compare(model: str) -> dict[str, Speed]:
    """The best speeds of each contestant, in alternating child processes; "wheel" is the first.

    Raises:
        BackendError: there is nothing to compare, or a run fails.
    """
    contestants = _contestants()
    speeds: dict[str, list[Speed]] = {name: [] for name in contestants}
    for number in range(1, ROUNDS + 1):
        for name, contestant in contestants.items():
            print(f"measuring {name} ({number} of {ROUNDS})", file=sys.stderr, flush=True)
            speeds[name].append(_run(contestant, model))
    return {name: _best(runs) for name, runs in speeds.items()}


def _contestants() -> dict[str, Contestant]:
    wheel, native = locate.wheel_folder(), locate.native_folder()
    if wheel is None:
        raise BackendError("the prebuilt library is not installed, so there is nothing to compare")
    found = {"wheel": Contestant(wheel, "ggml")}
    if native:
        found["native"] = Contestant(native, "ggml")
    if kernel_library(native or wheel):
        found["kernels"] = Contestant(native or wheel, "native")
    if len(found) == 1:
        raise BackendError(
            "there is nothing to compare the prebuilt library with; `powerserve build-native` "
            "makes a library for this machine"
        )
    return found


def _run(contestant: Contestant, model: str) -> Speed:
    command = [sys.executable, "-m", "powerserve", "run", "--json", "--quiet", "-p", PROMPT]
    command += ["-n", str(NUM_TOKENS), "--temp", "0", "--ignore-eos"]
    command += ["--kernels", contestant.kernels]
    command += ["-m", model] if model else []
    environment = os.environ | {locate.ENVIRONMENT_VARIABLE: str(contestant.ggml)}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise BackendError(f"the library in {contestant.ggml} takes too long") from None
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BackendError(f"the library in {contestant.ggml} does not run the model: {reason}")
    return _speed(json.loads(done.stdout))


def _speed(answer: Mapping[str, float]) -> Speed:
    return Speed(
        prefill=answer["prompt_tokens"] / answer["prefill_s"],
        decode=(answer["completion_tokens"] - 1) / answer["decode_s"],
    )


def _best(runs: list[Speed]) -> Speed:
    return Speed(max(run.prefill for run in runs), max(run.decode for run in runs))
