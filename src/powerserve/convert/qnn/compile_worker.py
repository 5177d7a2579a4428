"""The process that compiles the graphs of one context binary; see compiler.py.

onnxruntime's QNN provider writes a context binary and, per graph, an ONNX file with one EPContext
node that names the graph inside it. Sessions that share weights must live in one process.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from powerserve.convert.qnn.child import serve
from powerserve.core import machine

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, SessionOptions

PROVIDER = "QNNExecutionProvider"
LOG_ERRORS = 3  # onnxruntime's severity


def main() -> None:
    """Answer one request of compiler.py."""
    serve(compile_graphs)


def compile_graphs(request: dict[str, Any]) -> dict[str, Any]:
    """Compile the files `graphs` in the empty folder `folder`; see CompileJob for the rest.

    Returns the name of each graph, the binary's file name, seconds per graph and the peak memory.
    """
    folder, graphs = Path(request["folder"]), request["graphs"]
    devices = _devices()
    sessions, seconds = [], []
    for number, graph in enumerate(graphs):
        start = time.perf_counter()
        options = _options(_session_entries(folder, number, len(graphs)))
        options.add_provider_for_devices(devices, request["provider_options"])
        sessions.append(_session(graph, options))  # kept: the next one shares its weights
        seconds.append(time.perf_counter() - start)
    nodes = [_context_node(_context_path(folder, number)) for number in range(len(graphs))]
    return {
        "graph_names": [node["partition_name"] for node in nodes],
        "binary": nodes[0]["ep_cache_context"],
        "seconds": seconds,
        "peak_memory": machine.peak_memory(),
    }


def _options(entries: Mapping[str, str]) -> SessionOptions:
    import onnxruntime

    options: SessionOptions = onnxruntime.SessionOptions()
    options.log_severity_level = LOG_ERRORS
    options.intra_op_num_threads = 1
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    return options


def _session(graph: str, options: SessionOptions) -> InferenceSession:
    import onnxruntime

    # Without that optimiser: it makes a Gemm of a product and a residual, which QNN refuses.
    return onnxruntime.InferenceSession(graph, options, disabled_optimizers=["MatMulAddFusion"])


def _devices() -> Sequence[Any]:
    import onnxruntime
    import onnxruntime_qnn

    onnxruntime.register_execution_provider_library(PROVIDER, onnxruntime_qnn.get_library_path())
    return [device for device in onnxruntime.get_ep_devices() if device.ep_name == PROVIDER]


def _session_entries(folder: Path, number: int, num_graphs: int) -> dict[str, str]:
    entries = {
        "session.disable_cpu_ep_fallback": "1",
        "ep.context_enable": "1",
        "ep.context_embed_mode": "0",
        "ep.context_file_path": str(_context_path(folder, number)),
    }
    if num_graphs > 1:
        entries["ep.share_ep_contexts"] = "1"
        if number == num_graphs - 1:
            entries["ep.stop_share_ep_contexts"] = "1"
    return entries


def _context_path(folder: Path, number: int) -> Path:
    return folder / f"graph_{number}.onnx"


def _context_node(path: Path) -> dict[str, str]:
    """The text attributes of the one EPContext node in `path`."""
    import onnx

    nodes = onnx.load(path, load_external_data=False).graph.node
    if len(nodes) != 1 or nodes[0].op_type != "EPContext":
        operations = sorted({node.op_type for node in nodes})
        raise RuntimeError(f"the graph was split into {len(nodes)} parts: {', '.join(operations)}")
    return {each.name: each.s.decode() for each in nodes[0].attribute if each.s}


if __name__ == "__main__":
    main()
