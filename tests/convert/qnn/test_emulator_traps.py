"""What the emulator is known to compute wrongly, graphs are written so as to avoid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("onnxruntime_qnn", reason="onnxruntime-qnn has no wheel for this platform")

from npu_models import open_tiny
from powerserve.backend.base import FloatArray
from powerserve.backend.qnn.runtime.base import GraphRequest
from powerserve.backend.qnn.runtime.process import ProcessRuntime
from powerserve.backend.qnn.soc import find_soc, load_socs
from powerserve.backend.qnn.tensors import ChunkShape
from powerserve.backend.reference.rope import rope_tables
from powerserve.convert.qnn.calibration import Calibration, quantise_layers
from powerserve.convert.qnn.child import ChildProcesses
from powerserve.convert.qnn.compiler import CompileJob, CompileOptions, compile_binary
from powerserve.convert.qnn.cpu_execution import CpuGraph, chain_bias
from powerserve.convert.qnn.gate import OutputError, compare
from powerserve.convert.qnn.lowering import BATCH_16_GAIN, LoweringOptions, lower_chunk
from powerserve.convert.qnn.onnx_graph import OnnxGraph
from powerserve.convert.qnn.qdq import QuantisedLinears
from powerserve.convert.qnn.quantise import QuantisationOptions, ScaleSearch
from powerserve.convert.qnn.source import NpuModel
from tiny_models import TinyModel

TEXT = tuple(11 * i % 250 for i in range(40))
LOUD_TOKEN, LOUD_FEATURE = 5, 3
NUM_PAST = 20


@pytest.mark.parametrize("block_size", [None, 32])
def test_batch_size_16_and_large_activations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_size: int | None
) -> None:
    """One token's squares exceed what the NPU can hold, as those of a text's first token do."""
    model = open_tiny(tmp_path, TinyModel(embed_dim=128, head_dim=64, num_layers=1))
    make_loud(model, monkeypatch)
    options = LoweringOptions(attention_gain=BATCH_16_GAIN)
    quantisation = QuantisationOptions(4, ScaleSearch.MINMAX, block_size, 16)
    text = (LOUD_TOKEN, *TEXT)
    layer = next(quantise_layers(model, Calibration((text,), quantisation, options, 1)))
    shape = ChunkShape(0, 1, 16, 48, 64)
    graph = lower_chunk(model, shape, options, QuantisedLinears(layer.linears))
    for error in compared(graph, inputs(model, shape, text), tmp_path):
        assert error.cosine > 0.999, error
        assert error.relative_error < 0.02, error


def make_loud(model: NpuModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one feature of one token be very large, and norms suppress it, as in trained models."""
    embed, weight = model.embed, model.weight

    def louder(token_ids: npt.ArrayLike) -> FloatArray:
        rows = embed(np.asarray(token_ids))
        rows[np.asarray(token_ids) == LOUD_TOKEN] *= 100
        rows[np.asarray(token_ids) == LOUD_TOKEN, LOUD_FEATURE] = 10_000
        return rows

    def suppressing(name: str) -> FloatArray:
        values = weight(name).copy()
        if name.endswith("_norm.weight"):
            values[LOUD_FEATURE] = 0.01
        return values

    monkeypatch.setattr(model, "embed", louder)
    monkeypatch.setattr(model, "weight", suppressing)


def inputs(
    model: NpuModel, shape: ChunkShape, text: tuple[int, ...]
) -> dict[str, npt.NDArray[np.generic]]:
    """The beginning of a text as one batch, in front of which there is something in the cache."""
    rng = np.random.default_rng(0)
    positions = np.arange(NUM_PAST, NUM_PAST + shape.batch_size, dtype=np.int32)
    cos, sin = rope_tables(positions, model.config.rope, None)
    found: dict[str, npt.NDArray[np.generic]] = {
        "x": model.embed(text[: shape.batch_size]),
        "attn_bias": chain_bias(shape, NUM_PAST).astype(np.float16),
        "rope_embed_cos": cos,
        "rope_embed_sin": sin,
    }
    for head in range(model.config.num_kv_heads):
        keys = 0.1 * rng.normal(size=(model.config.head_dim, shape.cache_size))
        found[f"layer_0_key_t_cache_{head}"] = keys.astype(np.float16)
        values = rng.normal(size=(shape.cache_size, model.config.head_dim))
        found[f"layer_0_value_cache_{head}"] = values.astype(np.float16)
    return found


def compared(
    graph: OnnxGraph, values: dict[str, npt.NDArray[np.generic]], folder: Path
) -> tuple[OutputError, ...]:
    """The outputs on the emulator against those on the CPU."""
    path, binary = folder / "graph.onnx", folder / "graph.bin"
    path.write_bytes(graph.model().SerializeToString())
    with ChildProcesses() as children:
        options = CompileOptions(find_soc("8650", load_socs()), timeout_s=300)
        compiled = compile_binary(CompileJob((path,), binary), options, children)
    runtime = ProcessRuntime("the emulator")
    try:
        (loaded,) = runtime.load(binary, [GraphRequest(compiled.graph_names[0], graph.spec)])
        for name, value in values.items():
            loaded.inputs[name][:] = value
        loaded.run()
        return compare(CpuGraph(path, {}, 1).run(values), loaded.outputs)
    finally:
        runtime.close()
