"""How many threads a step should use when other programs want the cores too.

ggml's threads wait for each other by spinning, several hundred times per step. When one of them is
put aside by the system, the others burn their time slices waiting for it, and a step takes
ten times as long. Fewer threads, which all run, are then much faster than more that do not.

The sign of trouble is measured directly: `n` undisturbed threads use n seconds of CPU time per
second. When they get less, something else runs on their cores.
"""

from __future__ import annotations

WINDOW_S = 0.1  # how much computing is looked at before deciding
TOLERATED_LOSS = 0.55  # CPUs: a program that wants a core takes 2/3 of one from two threads, while
# a client that reads a stream, and the server that writes it, take less than half of one
MIN_RETRY_S = 1.0  # computing time before more threads are tried again …
MAX_RETRY_S = 16.0  # … doubled up to this each time they turn out to be disturbed


class ThreadGovernor:
    """Chooses between 1 and `max_threads` threads from the CPU time that steps have received."""

    def __init__(self, max_threads: int) -> None:
        self._max_threads = max_threads
        self._retry_s = MIN_RETRY_S
        self._since_change_s = 0.0
        self._wall_s = 0.0
        self._cpu_s = 0.0
        self._probing = False
        self.num_threads = max_threads

    def observe(self, wall_s: float, cpu_s: float) -> None:
        """Take in a step: how long it took, and the CPU time of the whole process meanwhile."""
        self._wall_s += wall_s
        self._cpu_s += cpu_s
        self._since_change_s += wall_s
        if self._wall_s >= WINDOW_S:
            received = self._cpu_s / self._wall_s
            self._wall_s = self._cpu_s = 0.0
            self._decide(received)

    def _decide(self, received: float) -> None:
        """`received`: CPUs that the threads had on average over the last window."""
        disturbed = received < self.num_threads - TOLERATED_LOSS
        if disturbed and self.num_threads > 1:
            self._retry_s = min(2 * self._retry_s, MAX_RETRY_S) if self._probing else MIN_RETRY_S
            self._change(max(1, min(self.num_threads - 1, round(received))), probing=False)
        elif disturbed:
            self._since_change_s = 0.0  # even one thread is disturbed: no time for more
        elif self.num_threads < self._max_threads and self._since_change_s >= self._retry_s:
            self._change(self.num_threads + 1, probing=True)
        else:
            self._probing = False

    def _change(self, num_threads: int, *, probing: bool) -> None:
        self.num_threads = num_threads
        self._probing = probing
        self._since_change_s = 0.0
