"""Threads for work that may take long, and that the process does not wait for when it ends."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
_Work = Callable[[], None]


class DaemonExecutor(Executor):
    """Runs functions in threads of its own, as many as are needed up to a number.

    `ThreadPoolExecutor` has the interpreter wait at its end for whatever still runs: a download
    from a hub that does not answer any more, say. Here it is abandoned.
    """

    def __init__(self, max_threads: int, name: str) -> None:
        self._max_threads = max_threads
        self._name = name
        self._threads: list[Thread] = []
        self._waiting: SimpleQueue[tuple[Future[Any], _Work] | None] = SimpleQueue()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have a function called; one thread at a time may submit."""
        future: Future[T] = Future()

        def work() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # whoever waits for the result shall have it
                future.set_exception(error)

        self._waiting.put((future, work))
        if len(self._threads) < self._max_threads:
            thread = Thread(target=self._run, name=self._name, daemon=True)
            self._threads.append(thread)
            thread.start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more; with `wait`, return when all that was submitted has ended."""
        if cancel_futures:
            self._cancel_waiting()
        for _ in self._threads:
            self._waiting.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    def _cancel_waiting(self) -> None:
        with suppress(Empty):
            while (item := self._waiting.get_nowait()) is not None:
                item[0].cancel()

    def _run(self) -> None:
        while (item := self._waiting.get()) is not None:
            future, work = item
            if future.set_running_or_notify_cancel():
                work()
            del item, future, work  # a thread that waits shall not keep what it has done
