"""Who is compared: programs that load a model and answer questions about its speed."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from powerserve.backend.ggml.locate import ENVIRONMENT_VARIABLE, wheel_folder

sys.path.append(str(Path(__file__).parents[1]))  # what benchmarks share
from line_process import LineProcess as LineProcess  # for the other modules here as well

HERE = Path(__file__).parent
KERNELS = {"native": "own kernels", "ggml": "ggml", "auto": "auto"}
NUM_CELLS = 1024  # of the server's context; the others have it in their scripts
_LIBRARIES = {"llama_cpp": "llama.cpp", "ik_llama_cpp": "ik_llama.cpp"}


@dataclass(frozen=True, slots=True)
class Contestant:
    """A program by its command line, in which MODEL and THREADS stand for themselves."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    has_steps: bool = True  # answers what subject.py offers; else only "prefill" and "decode"

    def start(self, model: Path, num_threads: int) -> LineProcess:
        """Load a model; exits if that fails."""
        values = {"MODEL": str(model), "THREADS": str(num_threads)}
        command = [values.get(word, word) for word in self.command]
        return LineProcess(self.name, command, self.environment)


def powerserve_contestants(kernels: Iterable[str], with_wheel: bool) -> list[Contestant]:
    """With the best ggml of this machine, and perhaps with the stock wheel's as well."""
    names = list(kernels)
    found = [_powerserve(KERNELS[name], name, {}) for name in names]
    if with_wheel:
        folder = wheel_folder()
        if folder is None:
            raise SystemExit("there is no wheel of ggml in this environment")
        wheel = {ENVIRONMENT_VARIABLE: str(folder)}
        found += [_powerserve(f"{KERNELS[name]}, wheel", name, wheel) for name in names]
    return found


def peer_contestant(folder: Path) -> Contestant:
    """The peer in a virtual environment; exits with a sentence if it is nothing we know."""
    python = str(folder / "bin" / "python")
    for package, name in _LIBRARIES.items():
        if _has_package(folder, package):
            script = str(HERE / "peer_llama_library.py")
            return Contestant(
                _versioned(name, folder, package), (python, script, package, "MODEL", "THREADS")
            )
    if _has_package(folder, "xllamacpp"):
        script = str(HERE.parent / "vs_llama_cpp" / "peer_xllamacpp.py")
        command = (python, script, "serve", "MODEL", "THREADS", "f16", str(NUM_CELLS))
        name = _versioned("llama.cpp, server", folder, "xllamacpp")
        return Contestant(name, command, has_steps=False)
    known = ", ".join([*_LIBRARIES, "xllamacpp"])
    raise SystemExit(f"{folder} is no virtual environment that has one of: {known}")


def _powerserve(name: str, kernels: str, environment: Mapping[str, str]) -> Contestant:
    script = str(HERE / "powerserve_subject.py")
    command = (sys.executable, script, "MODEL", "THREADS", kernels)
    return Contestant(f"PowerServe, {name}", command, environment)


def _has_package(folder: Path, package: str) -> bool:
    return any(folder.glob(f"lib/python3*/site-packages/{package}"))


def _versioned(name: str, folder: Path, package: str) -> str:
    """With the package's version, which tells apart several environments that have it."""
    for record in folder.glob(f"lib/python3*/site-packages/{package}*.dist-info"):
        return f"{name} ({record.name.removesuffix('.dist-info').replace('-', ' ')})"
    return name
