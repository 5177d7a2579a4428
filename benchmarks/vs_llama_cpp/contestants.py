"""Who is compared: each answers with samples of its speed, and with its first token."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from child import ChildRun, run_child

HERE = Path(__file__).parent
PROMPT = "The capital of France is"


@dataclass(frozen=True, slots=True)
class Setting:
    """What all of them run."""

    model: Path
    threads: int
    kv_type: str
    prefill: int
    decode: int
    repeats: int
    sizes: tuple[int, ...]  # of the batch curve


@dataclass(frozen=True, slots=True)
class Figures:
    """One child's answer."""

    rates: Mapping[str, float]  # tokens per second, the median of its repeats
    steps_ms: Mapping[str, float]  # the median step
    system: str
    peak_memory_bytes: int


class Contestant(ABC):
    """A program that runs models."""

    name: str
    has_curve: bool

    @abstractmethod
    def bench(self, setting: Setting) -> Figures:
        """Measure in a child process."""

    @abstractmethod
    def first_token(self, setting: Setting) -> ChildRun:
        """A whole process that answers PROMPT with one token."""


class PowerServe(Contestant):
    """`powerserve` of this environment with the ggml in `folder`."""

    has_curve = True

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._environment = {"POWERSERVE_GGML_DIR": str(folder)}
        self._program = str(Path(sys.executable).parent / "powerserve")

    def bench(self, setting: Setting) -> Figures:
        lengths = ("-p", str(setting.prefill), "-n", str(setting.decode))
        flags = [*lengths, "-r", str(setting.repeats), "-o", "json"]
        if setting.sizes:
            flags += ["--batch-curve", ",".join(map(str, setting.sizes))]
        child = self._run("bench", setting, flags)
        report = json.loads(child.output)
        samples = [
            {"name": test["name"], "num_tokens": test["num_tokens"], **sample}
            for test in [*report["tests"], *report["batch_curve"]]
            for sample in test["samples"]
        ]
        kernels = report["kernels"]
        system = f"ggml {kernels['version']}: {' '.join(kernels['features'])}"
        return _figures(samples, system, child.peak_memory_bytes)

    def first_token(self, setting: Setting) -> ChildRun:
        return self._run("run", setting, ["-n", "1", "--temp", "0", "-q", "-p", PROMPT])

    def _run(self, command: str, setting: Setting, flags: list[str]) -> ChildRun:
        common = ["-m", str(setting.model), "-t", str(setting.threads)]
        words = [self._program, command, *common, "--kv-type", setting.kv_type, *flags]
        return run_child(words, self._environment)


class LlamaCpp(Contestant):
    """peer.c, compiled against the llama.cpp in `root` (its `include` and `lib` folders)."""

    has_curve = True

    def __init__(self, name: str, root: Path, scratch: Path) -> None:
        self.name = name
        self._program = str(scratch / "peer")
        compiler = shutil.which("cc") or "gcc"
        libraries = [f"-L{root}/lib", f"-Wl,-rpath,{root}/lib"]
        libraries += ["-lllama", "-lggml", "-lggml-cpu", "-lggml-base"]
        source = str(HERE / "peer.c")
        command = [compiler, "-O2", f"-I{root}/include", source, "-o", self._program, *libraries]
        subprocess.run(command, check=True)

    def bench(self, setting: Setting) -> Figures:
        lengths = [str(setting.prefill), str(setting.decode), "0", str(setting.repeats)]
        return _peer_figures(self._run("bench", setting, [*lengths, *map(str, setting.sizes)]))

    def first_token(self, setting: Setting) -> ChildRun:
        return self._run("first", setting, [PROMPT])

    def _run(self, mode: str, setting: Setting, rest: list[str]) -> ChildRun:
        common = [mode, str(setting.model), str(setting.threads), setting.kv_type]
        return run_child([self._program, *common, *rest])


class XLlamaCpp(Contestant):
    """llama.cpp inside xllamacpp, in the environment of `python`."""

    has_curve = False

    def __init__(self, name: str, python: Path) -> None:
        self.name = name
        self._python = str(python)

    def bench(self, setting: Setting) -> Figures:
        lengths = [str(setting.prefill), str(setting.decode), str(setting.repeats)]
        return _peer_figures(self._run("bench", setting, lengths))

    def first_token(self, setting: Setting) -> ChildRun:
        return self._run("first", setting, [PROMPT])

    def _run(self, mode: str, setting: Setting, rest: list[str]) -> ChildRun:
        common = [mode, str(setting.model), str(setting.threads), setting.kv_type]
        return run_child([self._python, str(HERE / "peer_xllamacpp.py"), *common, *rest])


def _peer_figures(child: ChildRun) -> Figures:
    answer = json.loads(child.output)
    return _figures(answer["samples"], answer["system_info"], child.peak_memory_bytes)


def _figures(samples: list[dict], system: str, peak_memory_bytes: int) -> Figures:
    rates, steps_s = defaultdict(list), defaultdict(list)
    for sample in samples:
        rates[sample["name"]].append(sample["num_tokens"] / sum(sample["steps_s"]))
        steps_s[sample["name"]] += sample["steps_s"]
    return Figures(
        {name: statistics.median(values) for name, values in rates.items()},
        {name: 1000 * statistics.median(values) for name, values in steps_s.items()},
        system,
        peak_memory_bytes,
    )
