"""Graphs to context binaries: Qualcomm's offline compiler, as it comes with onnxruntime-qnn.

Graphs compiled together share their weights. Such a binary is for the device only: the emulator
refuses it, and gets one binary per graph. A binary whose inputs and options have not changed is not
compiled again.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from powerserve.backend.qnn.soc import Soc
from powerserve.convert.qnn.child import ChildProcesses
from powerserve.core.errors import BackendError, ConfigError
from powerserve.storage.json_file import read_json, write_json

WORKER = "powerserve.convert.qnn.compile_worker"
RECORD_SUFFIX = ".json"
DEFAULT_TIMEOUT_S = 4 * 3600.0
DISTRIBUTIONS = ("onnx", "onnxruntime", "onnxruntime-qnn")


@dataclass(frozen=True, slots=True)
class CompileOptions:
    """How the compiler works.

    Attributes:
        soc: what is compiled for.
        optimisation: 1 to 3; more takes longer.
        timeout_s: seconds after which a compilation is given up.
    """

    soc: Soc
    optimisation: int = 3
    timeout_s: float = DEFAULT_TIMEOUT_S

    def provider_options(self, num_graphs: int) -> dict[str, str]:
        """The options of onnxruntime's QNN provider."""
        options = {
            "soc_model": str(self.soc.compiler_model),
            "htp_arch": str(self.soc.htp_arch),
            "vtcm_mb": str(self.soc.vtcm_mb),
            "htp_graph_finalization_optimization_mode": str(self.optimisation),
            "offload_graph_io_quantization": "0",  # else inputs are quantised on the CPU
        }
        if num_graphs > 1:
            options["enable_htp_weight_sharing"] = "1"
        return options


@dataclass(frozen=True, slots=True)
class CompileJob:
    """ONNX files that become the graphs of one binary; it is written to `binary`."""

    graphs: tuple[Path, ...]
    binary: Path


@dataclass(frozen=True, slots=True)
class CompiledBinary:
    """What came of a job, as the record beside the binary says it."""

    key: str  # of inputs and options
    graph_names: tuple[str, ...]  # in the order of the job's graphs
    seconds: tuple[float, ...]  # for each graph
    peak_memory: int  # bytes
    size_bytes: int


def check_compiler() -> None:
    """Raise BackendError unless the compiler is installed."""
    require_packages("onnx", "onnxruntime", "onnxruntime_qnn")


def require_packages(*names: str) -> None:
    """Raise BackendError unless these packages of the extra `npu` are installed."""
    missing = [name for name in names if not find_spec(name)]
    if missing:
        raise BackendError(
            f"the NPU converter needs {', '.join(missing)}; install it with: "
            f"{sys.executable} -m pip install 'powerserve[npu]'{_platform_advice()}"
        )


def compile_binary(
    job: CompileJob, options: CompileOptions, children: ChildProcesses
) -> CompiledBinary:
    """Compile a job in a child process, unless its binary is there already.

    Nothing else may write into the binary's folder meanwhile.

    Raises:
        BackendError: the compiler refuses a graph, crashes or runs out of time or memory.
    """
    key = _key(job, options)
    known = read_record(job.binary)
    if known is not None and known.key == key:
        return known
    result = _compile(job, options, key, children)
    write_json(_record_path(job.binary), asdict(result))
    return result


def _compile(
    job: CompileJob, options: CompileOptions, key: str, children: ChildProcesses
) -> CompiledBinary:
    prefix = f".{job.binary.name}."
    for leftover in job.binary.parent.glob(f"{prefix}*"):  # of a process that was killed
        shutil.rmtree(leftover)
    with TemporaryDirectory(prefix=prefix, dir=job.binary.parent) as folder:
        request = {
            "folder": folder,
            "graphs": [str(path) for path in job.graphs],
            "provider_options": _provider_options(options, len(job.graphs)),
        }
        task = f"compiling {job.binary.name} for {options.soc.part}"
        answer = children.run(WORKER, request, task=task, timeout_s=options.timeout_s)
        made = Path(folder) / answer["binary"]
        size_bytes = made.stat().st_size
        made.replace(job.binary)
    names, seconds = tuple(answer["graph_names"]), tuple(answer["seconds"])
    return CompiledBinary(key, names, seconds, answer["peak_memory"], size_bytes)


def read_record(binary: Path) -> CompiledBinary | None:
    """What is known of a compiled binary, or None unless it is there and whole."""
    try:
        record = read_json(_record_path(binary), CompiledBinary)
        return record if record.size_bytes == binary.stat().st_size else None
    except (ConfigError, OSError):
        return None


def _provider_options(options: CompileOptions, num_graphs: int) -> dict[str, str]:
    import onnxruntime_qnn

    return {
        "backend_path": onnxruntime_qnn.get_qnn_htp_path(),
        **options.provider_options(num_graphs),
    }


def _record_path(binary: Path) -> Path:
    return binary.with_name(binary.name + RECORD_SUFFIX)


def _key(job: CompileJob, options: CompileOptions) -> str:
    """A digest of everything that decides the binary's content."""
    digest = hashlib.sha256()
    versions = {name: metadata.version(name) for name in DISTRIBUTIONS}
    settings = [options.provider_options(len(job.graphs)), versions]
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for path in _input_files(job):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _input_files(job: CompileJob) -> Iterator[Path]:
    """The graphs, and the weights that they keep in other files."""
    weights = set()
    for graph in job.graphs:
        yield graph
        weights |= external_files(graph)
    yield from sorted(weights)


def external_files(graph: Path) -> set[Path]:
    """The files beside the ONNX file `graph` that hold some of its tensors.

    Raises:
        BackendError: it is no ONNX file.
    """
    import onnx

    try:
        model = onnx.load(graph, load_external_data=False)
    except Exception as error:  # protobuf's, whose types its wheel does not export
        raise BackendError(f"{graph} is no ONNX file: {error}") from None
    return {
        graph.parent / entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _platform_advice() -> str:
    if (sys.platform, platform.machine()) in (("linux", "x86_64"), ("win32", "AMD64")):
        return ""
    return " (the compiler exists for x86-64 Linux and Windows only)"
