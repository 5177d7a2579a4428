"""Describe a context binary: its graphs and tensors, and what made it for which SoC.

Any SoC's will do, and no NPU is needed: Qualcomm's libraries come with `pip install
onnxruntime-qnn`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec

from powerserve.backend.qnn.inspect import BinaryInfo, GraphInfo, TensorInfo, inspect_binary
from powerserve.backend.qnn.libraries import find_libraries
from powerserve.backend.qnn.soc import load_socs, soc_by_model
from powerserve.cli.terminal import visible
from powerserve.storage.progress import format_bytes


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("binary", type=Path, metavar="FILE.bin")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--lib-folder", type=Path, metavar="DIR", help="the folder of Qualcomm's libraries"
    )


def execute(arguments: argparse.Namespace) -> int:
    """Print the description."""
    info = inspect_binary(arguments.binary, find_libraries(arguments.lib_folder))
    if arguments.json:
        print(msgspec.json.format(msgspec.json.encode(info), indent=2).decode())
        return 0
    size = format_bytes(arguments.binary.stat().st_size)
    print(f"{arguments.binary}: {size}, for {_soc_name(info)}")
    print(f"made by QNN {info.build_id} (API {info.core_api}, NPU backend {info.backend_api})")
    for graph in info.graphs:
        _print_graph(graph)
    return 0


def _soc_name(info: BinaryInfo) -> str:
    soc = soc_by_model(info.soc_model, load_socs())
    number = f"SoC {info.soc_model}" if info.soc_model else "a SoC that it does not name"
    return f"{number}, {soc.title}" if soc else number


def _print_graph(graph: GraphInfo) -> None:
    print(f"\ngraph {visible(graph.name)}")
    width = max(len(tensor.name) for tensor in (*graph.inputs, *graph.outputs))
    for direction, tensors in (("in", graph.inputs), ("out", graph.outputs)):
        for tensor in tensors:
            name = visible(tensor.name)
            print(f"  {direction:3} {name:{width}}  {tensor.type_name} {_shape(tensor)}")


def _shape(tensor: TensorInfo) -> str:
    if tensor.scale is None:
        return str(list(tensor.shape))
    return f"{list(tensor.shape)} scale {tensor.scale:g} offset {tensor.offset}"
