"""Compiled graphs as ONNX Runtime sessions, in this process.

An `.onnx` chunk runs on ONNX Runtime's CPU kernels: the quantised graph itself, to compare with. A
context binary runs through Qualcomm's execution provider: on the NPU of a Snapdragon, elsewhere on
Qualcomm's emulator of it. Their library can crash the process, so `worker.py` keeps it in another.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from powerserve.backend.qnn.runtime.base import Array, CompiledGraph, GraphRequest
from powerserve.backend.qnn.tensors import TensorSpec
from powerserve.core.errors import BackendError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, SessionOptions

PROVIDER = "QNNExecutionProvider"
INSTALL_HINT = "install it with: pip install 'powerserve[npu]'"
ONLY_FATAL = 4  # ONNX Runtime's log level; errors are in its exceptions too
_ELEMENT_TYPES = {"float32": "tensor(float)", "float16": "tensor(float16)"}


class SessionGraph(CompiledGraph):
    """A session whose inputs and outputs are bound to fixed arrays."""

    def __init__(
        self, session: InferenceSession, inputs: Mapping[str, Array], outputs: Mapping[str, Array]
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self._session = session
        self._binding = session.io_binding()
        for bind, arrays in (
            (self._binding.bind_input, inputs),
            (self._binding.bind_output, outputs),
        ):
            for name, array in arrays.items():
                bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def run(self) -> None:
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # ONNX Runtime has no common base class
            raise BackendError(
                f"ONNX Runtime could not run a graph: {_first_line(error)}"
            ) from None


def cpu_session(path: Path, graph: GraphRequest, num_threads: int) -> InferenceSession:
    """The ONNX file of a chunk on the CPU; `num_threads` 0: as many as there are cores.

    Raises BackendError if it cannot be loaded or has other tensors.
    """
    session = _session(str(path), _options(num_threads), str(path))
    _check_tensors(session, graph, path)
    return session


def npu_session(binary: Path, graph: GraphRequest, libraries: Path | None) -> InferenceSession:
    """A graph of a context binary on the NPU, or on its emulator where there is none.

    Args:
        binary: made by this project's converter, the original's or Qualcomm's own tools.
        graph: the graph's name and tensors in the binary.
        libraries: the folder of Qualcomm's libraries; None: those of onnxruntime-qnn.

    Raises:
        BackendError: a package or the binary is missing or cannot be used.
    """
    options = _options(1)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    # The path the wrapping model would have: the binary is looked for beside it.
    options.add_session_config_entry("ep.context_file_path", str(binary.absolute()) + ".onnx")
    options.add_provider_for_devices(_devices(), {"backend_path": _htp_library(libraries)})
    return _session(wrap_binary(binary.name, graph), options, f"the graph {graph.name} of {binary}")


def wrap_binary(file_name: str, graph: GraphRequest) -> bytes:
    """An ONNX model with one node: a graph of the context binary `file_name` beside it.

    Source: the EPContext design of ONNX Runtime (contrib operator `com.microsoft.EPContext`).
    """
    onnx = _imported("onnx")
    helper, element_type = onnx.helper, onnx.helper.np_dtype_to_tensor_dtype

    def infos(specs: tuple[TensorSpec, ...]) -> list[Any]:
        return [
            helper.make_tensor_value_info(spec.name, element_type(spec.dtype), spec.shape)
            for spec in specs
        ]

    inputs, outputs = infos(graph.spec.inputs), infos(graph.spec.outputs)
    node = helper.make_node(
        "EPContext",
        [each.name for each in inputs],
        [each.name for each in outputs],
        name=graph.name,
        domain="com.microsoft",
        main_context=1,
        embed_mode=0,
        ep_cache_context=file_name,
        source="Qnn",
    )
    model = helper.make_model(
        helper.make_graph([node], graph.name, inputs, outputs),
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
    )
    content: bytes = model.SerializeToString()
    return content


def _options(num_threads: int) -> SessionOptions:
    options: SessionOptions = _imported("onnxruntime").SessionOptions()
    options.log_severity_level = ONLY_FATAL
    options.intra_op_num_threads = num_threads
    # Every graph has threads of its own, and those of the others should not burn the cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _session(model: str | bytes, options: SessionOptions, what: str) -> InferenceSession:
    providers = None if options.has_providers() else ["CPUExecutionProvider"]
    try:
        return _imported("onnxruntime").InferenceSession(model, options, providers=providers)
    except Exception as error:  # ONNX Runtime has no common base class
        raise BackendError(f"{what} cannot be loaded: {_first_line(error)}") from None


def _devices() -> list[Any]:
    runtime, provider = _imported("onnxruntime"), _imported("onnxruntime_qnn")
    if not any(device.ep_name == PROVIDER for device in runtime.get_ep_devices()):
        try:
            runtime.register_execution_provider_library(PROVIDER, provider.get_library_path())
        except Exception as error:
            raise BackendError(
                f"Qualcomm's execution provider cannot be loaded: {_first_line(error)}"
            ) from None
    return [device for device in runtime.get_ep_devices() if device.ep_name == PROVIDER]


def _htp_library(libraries: Path | None) -> str:
    if libraries is None:
        path: str = _imported("onnxruntime_qnn").get_qnn_htp_path()
        return path
    for name in ("libQnnHtp.so", "QnnHtp.dll"):
        if (libraries / name).is_file():
            return str(libraries / name)
    raise BackendError(f"there is no libQnnHtp.so in {libraries}")


def _check_tensors(session: InferenceSession, graph: GraphRequest, path: Path) -> None:
    for specs, tensors in (
        (graph.spec.inputs, session.get_inputs()),
        (graph.spec.outputs, session.get_outputs()),
    ):
        found = {tensor.name: (tensor.type, tuple(tensor.shape)) for tensor in tensors}
        for spec in specs:
            expected = (_ELEMENT_TYPES[spec.dtype.name], spec.shape)
            if found.pop(spec.name, None) != expected:
                raise BackendError(
                    f"{path} has no tensor {spec.name} of type {spec.dtype} and shape "
                    f"{list(spec.shape)}: it was made for another model or another config.json"
                )
        if found:
            raise BackendError(f"{path} has tensors that are not known: {', '.join(found)}")


def _imported(name: str) -> Any:
    """An optional package, which takes time to import. Raises BackendError if it is missing."""
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError:
        package = name.replace("_", "-")
        raise BackendError(f"the NPU needs the package {package}; {INSTALL_HINT}") from None


def _first_line(error: Exception) -> str:
    """What an exception of ONNX Runtime says, without its number."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return text.rpartition(" : ")[2].rstrip(".")
