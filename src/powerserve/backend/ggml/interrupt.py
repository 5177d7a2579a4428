"""Stopping a running ggml graph from another thread, without Python code inside the graph.

ggml asks a C function before every node whether to stop. Calling back into Python a thousand times
per step would cost more than the step; so the function is libc's `strlen`, given a string that is
empty until someone wants to stop: strlen("") is 0, "go on", and strlen("x") is 1, "stop".
"""

from __future__ import annotations

import ctypes

from powerserve.backend.ggml.library import GgmlLibrary


class AbortFlag:
    """A flag that ggml's threads look at; `raise_flag` may be called from any thread."""

    def __init__(self, library: GgmlLibrary, backend: int) -> None:
        self._text = ctypes.create_string_buffer(2)
        strlen = ctypes.cast(ctypes.CDLL(None).strlen, ctypes.c_void_p)
        library.backend_cpu_set_abort_callback(
            backend, strlen, ctypes.cast(self._text, ctypes.c_void_p)
        )

    def raise_flag(self) -> None:
        """Make the running graph stop at its next node."""
        self._text[0] = b"x"

    def clear(self) -> None:
        """Let graphs run again."""
        self._text[0] = b"\0"
