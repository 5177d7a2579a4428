"""What the machine and this process have and use."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from powerserve.core import machine


def test_peak_memory_remembers_what_is_gone() -> None:
    before = machine.peak_memory()
    num_bytes = np.ones(before // 4).nbytes  # twice what was held before, and gone at once
    assert machine.peak_memory() > max(before, 0.9 * num_bytes)


def test_a_child_does_not_count_its_parents_memory() -> None:
    held = np.ones(40_000_000)
    code = "from powerserve.core import machine; print(machine.peak_memory())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert 0 < int(done.stdout) < held.nbytes
