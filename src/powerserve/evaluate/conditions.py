"""Under which conditions something was measured, and what may have disturbed it."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import dataclass

from powerserve.backend.base import Backend
from powerserve.backend.ggml.backend import GgmlBackend
from powerserve.backend.ggml.locate import origin_of
from powerserve.core.machine import allowed_cpus, cpu_name, load_average, total_memory

QUIET_LOAD = 0.5  # load average up to which a machine counts as idle
TOLERATED_LOSS = 0.2  # CPUs that a measurement may get less than it has threads


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine, as it was before the measurement."""

    cpu: str
    num_cpus: int  # that this process may use
    memory_bytes: int | None
    system: str
    load_average: float  # of one minute


@dataclass(frozen=True, slots=True)
class Kernels:
    """The libraries that compute."""

    backend: str
    origin: str  # "native", "wheel", "environment"; empty for backends without a library
    version: str
    features: tuple[str, ...]  # CPU features it uses
    own: tuple[str, ...] = ()  # instruction sets of our own kernels, best first


def describe_machine() -> Machine:
    """This machine, now."""
    return Machine(
        cpu=cpu_name(),
        num_cpus=allowed_cpus(),
        memory_bytes=total_memory(),
        system=f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        load_average=load_average(),
    )


def describe_kernels(backend: Backend) -> Kernels:
    """The backend's library, and our own kernels."""
    if not isinstance(backend, GgmlBackend):
        return Kernels(backend.name, "", "", ())
    library = backend.library
    return Kernels(
        backend.name,
        origin_of(library.folder),
        library.version_text,
        tuple(library.features()),
        own=tuple(backend.kernels.instruction_sets) if backend.kernels else (),
    )


def disturbances(machine: Machine, num_threads: int, cpus: Iterable[float]) -> list[str]:
    """Sentences about what makes the figures doubtful; none on a quiet machine.

    Args:
        machine: as it was before.
        num_threads: threads that were meant to run.
        cpus: CPUs that each measurement got on average.
    """
    found = []
    if machine.load_average > QUIET_LOAD:
        found.append(
            f"the load average was {machine.load_average:.2f} before the measurement: "
            "other programs may have slowed it down"
        )
    least = min(cpus, default=float(num_threads))
    if least < num_threads - TOLERATED_LOSS:
        found.append(
            f"at worst, {num_threads} threads got {least:.2f} CPUs: other programs used the cores, "
            "and steps may have run with fewer threads"
        )
    return found
