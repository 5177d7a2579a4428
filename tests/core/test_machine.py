"""What the machine and this process have and use."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from powerserve.core import machine


def test_peak_memory_grows_with_what_is_held_and_stays_when_it_is_gone() -> None:
    before = machine.peak_memory()
    held = np.ones(8_000_000)
    while_held = machine.peak_memory()
    assert while_held >= held.nbytes
    del held
    assert machine.peak_memory() >= while_held >= before


def test_a_child_does_not_count_its_parents_memory() -> None:
    held = np.ones(40_000_000)
    code = "from powerserve.core import machine; print(machine.peak_memory())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert 0 < int(done.stdout) < held.nbytes
