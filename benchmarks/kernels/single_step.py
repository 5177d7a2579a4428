"""Counting instructions by executing them one at a time, on Linux.

Unlike valgrind this knows every instruction the processor has, AMX included; unlike perf it works
in virtual machines, which rarely have the counters.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
from collections.abc import Callable
from contextlib import suppress

TRACE_ME, CONTINUE, SINGLE_STEP = 0, 7, 9  # of <sys/ptrace.h>
MARK = signal.SIGUSR1
JOB_CONTROL = (signal.SIGSTOP, signal.SIGCONT)  # meant for us as well; nothing is lost here


def count_instructions(work: Callable[[], object]) -> int:
    """Instructions of the second call of `work`, in a child process of one thread.

    What the interpreter needs for the call is included: a difference of two counts is without it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    child = os.fork()
    if child == 0:
        _be_counted(libc, work)
    try:
        return _count_between_marks(libc, child)
    finally:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _be_counted(libc: ctypes.CDLL, work: Callable[[], object]) -> None:
    """The child: what lies between two marks is counted."""
    gc.disable()
    libc.ptrace(TRACE_ME, 0, None, None)
    work()
    os.kill(os.getpid(), MARK)
    work()
    os.kill(os.getpid(), MARK)
    os._exit(0)


def _count_between_marks(libc: ctypes.CDLL, child: int) -> int:
    found = _next_stop(child)
    while found != MARK:
        found = _go_on(libc, child, CONTINUE)
    num_steps = 0
    while (found := _go_on(libc, child, SINGLE_STEP)) != MARK:
        num_steps += found == signal.SIGTRAP
    return num_steps


def _go_on(libc: ctypes.CDLL, child: int, how: int) -> int:
    if libc.ptrace(how, child, None, None):
        raise SystemExit(f"ptrace failed: {os.strerror(ctypes.get_errno())}")
    return _next_stop(child)


def _next_stop(child: int) -> int:
    """The signal for which the child has stopped."""
    _, status = os.waitpid(child, 0)
    if not os.WIFSTOPPED(status):
        raise SystemExit("a process cannot be traced here, or it failed")
    found = os.WSTOPSIG(status)
    if found not in (MARK, signal.SIGTRAP, *JOB_CONTROL):
        raise SystemExit(f"the process whose instructions are counted got signal {found}")
    return found
