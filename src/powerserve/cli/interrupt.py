"""Ctrl-C that takes effect at once, even in the middle of a long step.

Python runs signal handlers between bytecodes of the main thread, which waits inside ggml as long
as a step takes. The C part of the handler writes to a socket immediately, though; a small thread
reads it and tells the backend to stop, and then Python's own handler gets its turn.
"""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from powerserve.backend.base import Backend


@contextmanager
def interruptible(backend: Backend) -> Iterator[None]:
    """While inside, Ctrl-C stops the running step and raises KeyboardInterrupt."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    previous = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(reader, backend), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        writer.close()
        watcher.join()
        reader.close()
        backend.resume()


def _watch(reader: socket.socket, backend: Backend) -> None:
    while received := reader.recv(64):
        if signal.SIGINT in received:
            backend.interrupt()
