"""Measure the prebuilt library against this machine's own build: `powerserve doctor --measure`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from powerserve.backend.ggml import locate
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


def compare(model: str) -> dict[str, Speed]:
    """The best speeds with each library, by its origin, in alternating child processes.

    Raises:
        BackendError: there are no two libraries to compare, or a run fails.
    """
    folders = _folders()
    speeds: dict[str, list[Speed]] = {origin: [] for origin in folders}
    for number in range(1, ROUNDS + 1):
        for origin, folder in folders.items():
            print(f"measuring {origin} ({number} of {ROUNDS})", file=sys.stderr, flush=True)
            speeds[origin].append(_run(folder, model))
    return {origin: _best(runs) for origin, runs in speeds.items()}


def _folders() -> dict[str, Path]:
    wheel, native = locate.wheel_folder(), locate.native_folder()
    if native is None:
        raise BackendError(
            "there is nothing to compare the prebuilt library with; `powerserve build-native` "
            "makes a library for this machine"
        )
    if wheel is None:
        raise BackendError("the prebuilt library is not installed, so there is nothing to compare")
    return {"wheel": wheel, "native": native}


def _run(folder: Path, model: str) -> Speed:
    command = [sys.executable, "-m", "powerserve", "run", "--json", "--quiet", "-p", PROMPT]
    command += ["-n", str(NUM_TOKENS), "--temp", "0", "--ignore-eos"]
    command += ["-m", model] if model else []
    environment = os.environ | {locate.ENVIRONMENT_VARIABLE: str(folder)}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise BackendError(f"the library in {folder} takes too long") from None
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BackendError(f"the library in {folder} does not run the model: {reason}")
    return _speed(json.loads(done.stdout))


def _speed(answer: Mapping[str, float]) -> Speed:
    return Speed(
        prefill=answer["prompt_tokens"] / answer["prefill_s"],
        decode=(answer["completion_tokens"] - 1) / answer["decode_s"],
    )


def _best(runs: list[Speed]) -> Speed:
    return Speed(max(run.prefill for run in runs), max(run.decode for run in runs))
