"""Say what is in use on this machine, what is broken, and what would help.

The exit status is 0 if models can run here, and 1 if something that they need is broken.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from powerserve.storage.progress import format_bytes

if TYPE_CHECKING:
    from powerserve.cli.comparison import Speed
    from powerserve.cli.diagnosis import Diagnosis, Library, Memory, OwnKernels, Store, Threads

WIDTH = 14
BROKEN = 1


def configure(parser: ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--measure",
        action="store_true",
        help="compare the prebuilt library with what was built on this machine (a minute or two)",
    )
    parser.add_argument("-m", "--model", default="", help="measure with this model")


def execute(arguments: Namespace) -> int:
    """Diagnose and print."""
    from powerserve.cli.diagnosis import diagnose

    diagnosis = diagnose()
    if not arguments.json:
        print("\n".join(report_lines(diagnosis)), flush=True)
    speeds = _measure(arguments.model) if arguments.measure and not diagnosis.problems else None
    if arguments.json:
        print(json.dumps(_as_json(diagnosis, speeds), indent=2))
    elif speeds:
        print("\n".join(speed_lines(speeds)))
    return BROKEN if diagnosis.problems else 0


def _measure(model: str) -> dict[str, Speed] | None:
    """Speeds with both libraries; None, and why, where that is impossible."""
    from powerserve.cli.comparison import compare
    from powerserve.core.errors import BackendError

    try:
        return compare(model)
    except BackendError as error:
        print(f"not measured: {error}", file=sys.stderr)
        return None


def report_lines(diagnosis: Diagnosis) -> Iterator[str]:
    """The diagnosis for people."""
    yield _line("powerserve", f"{diagnosis.powerserve}, Python {diagnosis.python}")
    yield _line("system", diagnosis.system)
    yield _line("CPU", diagnosis.cpu)
    yield _line("CPU features", " ".join(diagnosis.cpu_features) or "not known on this system")
    yield from _library_lines(diagnosis.library)
    yield _line("kernels", _kernels_text(diagnosis.kernels))
    yield _line("threads", _threads_text(diagnosis.threads))
    yield _line("memory", _memory_text(diagnosis.memory))
    yield _line("huge pages", diagnosis.memory.huge_pages or "not known on this system")
    yield _line("models", _store_text(diagnosis.store))
    yield _line("packages", _packages_text(diagnosis.packages))
    for problem in diagnosis.problems:
        yield f"\nbroken: {problem}"
    for advice in diagnosis.advice:
        yield f"\nwould help: {advice}"
    if not diagnosis.problems:
        yield "\neverything that is needed works"


def speed_lines(speeds: Mapping[str, Speed]) -> Iterator[str]:
    """A comparison for people."""
    yield ""
    for name, speed in speeds.items():
        yield _line(
            name, f"prefill {speed.prefill:8.1f} tokens/s   decode {speed.decode:7.1f} tokens/s"
        )
    wheel = speeds["wheel"]
    for name, speed in speeds.items():
        if name != "wheel":
            yield _line(
                f"{name}/wheel",
                f"prefill {speed.prefill / wheel.prefill:8.2f}            "
                f"decode {speed.decode / wheel.decode:7.2f}",
            )


def _library_lines(library: Library) -> Iterator[str]:
    if library.error:
        yield _line("library", "does not work")
        return
    yield _line("library", f"ggml {library.version} ({library.origin}) in {library.folder}")
    yield _line("  uses", " ".join(library.features))
    if library.unused_features:
        yield _line("  leaves out", " ".join(library.unused_features))


def _kernels_text(kernels: OwnKernels) -> str:
    if kernels.error:
        return "ggml's; our own do not work"
    if kernels.path is None:
        return "ggml's"
    return f"our own for {' '.join(kernels.instruction_sets)} in {kernels.path}"


def _threads_text(threads: Threads) -> str:
    quota = "no quota" if threads.cpu_quota is None else f"a quota of {threads.cpu_quota:g}"
    return (
        f"{threads.used} are used: {threads.physical_cores} physical cores, "
        f"{threads.allowed_cpus} CPUs allowed, {quota}; load {threads.load_average:.1f}"
    )


def _memory_text(memory: Memory) -> str:
    total, available = (
        "?" if size is None else format_bytes(size)
        for size in (memory.total_bytes, memory.available_bytes)
    )
    return f"{available} available of {total}"


def _store_text(store: Store) -> str:
    models = ", ".join(store.models) or "none"
    return f"{models} in {store.folder}{'' if store.writable else ' (not writable)'}"


def _packages_text(packages: Mapping[str, str | None]) -> str:
    return ", ".join(f"{name} {version or '(missing)'}" for name, version in packages.items())


def _line(name: str, text: str) -> str:
    return f"{name:{WIDTH}}{text}"


def _as_json(diagnosis: Diagnosis, speeds: Mapping[str, Speed] | None) -> dict[str, object]:
    data = {"usable": not diagnosis.problems, **asdict(diagnosis)}
    if speeds is not None:
        data["tokens_per_s"] = {origin: asdict(speed) for origin, speed in speeds.items()}
    return data
