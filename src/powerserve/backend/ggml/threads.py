"""ggml's worker threads, kept alive between steps."""

from __future__ import annotations

import ctypes
from time import perf_counter, process_time

from powerserve.backend.ggml.governor import ThreadGovernor
from powerserve.backend.ggml.library import MAX_THREADS, GgmlLibrary, ThreadpoolParams
from powerserve.core.errors import BackendError, UsageError

DEFAULT_POLL = 50
"""How long an idle worker spins before it sleeps (0: at once, 100: longest). Decoding leaves gaps
of some 50 µs between steps, in which waking a sleeping worker would cost as much again."""


class ThreadPool:
    """`num_threads` threads, the caller's among them."""

    def __init__(self, library: GgmlLibrary, num_threads: int, poll: int = DEFAULT_POLL) -> None:
        if not 1 <= num_threads <= MAX_THREADS:
            raise UsageError(f"the number of threads must be 1 to {MAX_THREADS}, not {num_threads}")
        if not 0 <= poll <= 100:
            raise UsageError(f"the poll level must be 0 to 100, not {poll}")
        self._library = library
        self.num_threads = num_threads
        params = ThreadpoolParams()
        library.threadpool_params_init(ctypes.byref(params), num_threads)
        params.poll = poll
        handle: int | None = library.threadpool_new(ctypes.byref(params))
        if not handle:
            raise BackendError(f"ggml could not start {num_threads} threads")
        self.handle = handle
        self._governor = ThreadGovernor(num_threads)
        self._num_used = num_threads

    def attach(self, backend: int) -> None:
        """Let a ggml CPU backend compute with these threads."""
        self._library.backend_cpu_set_n_threads(backend, self.num_threads)
        self._library.backend_cpu_set_threadpool(backend, self.handle)

    def compute(self, backend: int, graph: int) -> int:
        """Run a graph with as many threads as the machine has to give now; ggml's status."""
        governor = self._governor
        if governor.num_threads != self._num_used:
            self._num_used = governor.num_threads
            self._library.backend_cpu_set_n_threads(backend, self._num_used)
        wall, cpu = perf_counter(), process_time()
        status: int = self._library.backend_graph_compute(backend, graph)
        governor.observe(perf_counter() - wall, process_time() - cpu)
        return status

    def close(self) -> None:
        """End the threads."""
        self._library.threadpool_free(self.handle)
