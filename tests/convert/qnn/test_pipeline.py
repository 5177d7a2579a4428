"""Whole conversions of tiny models, with Qualcomm's compiler and emulator."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime_qnn", reason="onnxruntime-qnn has no wheel for this platform")

from npu_conversions import SIZES, Converted, tiny_conversion
from powerserve.backend.qnn.config_file import QnnConfig, read_qnn_config
from powerserve.backend.qnn.inspect import BinaryInfo, inspect_binary
from powerserve.backend.qnn.libraries import find_libraries
from powerserve.convert.qnn import pipeline
from powerserve.convert.qnn import request as request_module
from powerserve.convert.qnn.child import ChildProcesses
from powerserve.convert.qnn.gate import GateLimits
from powerserve.convert.qnn.pipeline import convert_for_npu
from powerserve.core.errors import BackendError
from powerserve.storage.gguf import GGUFFile
from powerserve.tokenizer.tokenizer import Tokenizer

SOC_MODELS = {"llama": 57, "qwen2": 69}  # 8 Gen 3 and 8 Elite: see the fixture `npu_model`


@pytest.fixture
def case(npu_model: Converted) -> tuple[Converted, int]:
    return npu_model, SOC_MODELS[npu_model.conversion.source.stem]


def test_the_gate_accepts_every_graph(case: tuple[Converted, int]) -> None:
    converted, _ = case
    graphs = converted.report.graphs
    assert [(graph.part, graph.batch_size) for graph in graphs] == [
        (part, size) for part in ("chunk 0", "chunk 1", "LM head") for size in SIZES.batch_sizes
    ]
    assert not converted.report.failures
    assert min(each.cosine for graph in graphs for each in graph.outputs) > 0.9999
    assert all(0 < error < 0.5 for error in converted.report.layer_errors)


def test_config_json_describes_the_device(case: tuple[Converted, int]) -> None:
    converted, soc_model = case
    config = read_qnn_config(converted.folder)
    assert config.soc_model == soc_model
    assert config.batch_sizes == SIZES.batch_sizes
    assert (config.cache_size, config.context_size) == (64, 80)
    for batch_size in SIZES.batch_sizes:
        chunks = config.chunks(batch_size)
        layers = [(chunk.start_layer_id, chunk.end_layer_id) for chunk in chunks]
        assert layers == [(0, 1), (1, 2)]
        assert [chunk.model_path for chunk in chunks] == ["tiny_0.bin", "tiny_1.bin"]
    sizes = config.model_parameters
    assert (sizes.n_layers, sizes.embed_dim, sizes.head_dim, sizes.n_kv_heads) == (2, 64, 32, 2)
    assert config.qnn_parameters.n_hvx_threads == (4 if soc_model == 57 else 6)


def test_binaries_have_the_originals_tensors(case: tuple[Converted, int]) -> None:
    converted, soc_model = case
    config = read_qnn_config(converted.folder)
    for chunk in (each for size in SIZES.batch_sizes for each in config.chunks(size)):
        binary = inspect_binary(converted.folder / chunk.model_path, find_libraries())
        assert binary.soc_model == soc_model
        rows, layer = chunk.batch_size, chunk.start_layer_id
        heads = (0, 1)
        assert tensors_of(binary, chunk.graph_name) == {
            "x": ("float32", (rows, 64)),
            "attn_bias": ("float16", (rows, 80)),
            "rope_embed_cos": ("float32", (rows, 16)),
            "rope_embed_sin": ("float32", (rows, 16)),
            **{f"layer_{layer}_key_t_cache_{head}": ("float16", (32, 64)) for head in heads},
            **{f"layer_{layer}_value_cache_{head}": ("float16", (64, 32)) for head in heads},
            "out": ("float32", (rows, 64)),
            **{f"layer_{layer}_key_{head}": ("float16", (rows, 32)) for head in heads},
            **{f"layer_{layer}_value_{head}": ("float16", (rows, 32)) for head in heads},
        }
    vocab_size = config.model_parameters.vocab_size
    for lm_head in config.embeddings:
        binary = inspect_binary(converted.folder / lm_head.model_path, find_libraries())
        assert tensors_of(binary, lm_head.graph_name) == {
            "x": ("float32", (lm_head.batch_size, 64)),
            "logits": ("float32", (lm_head.batch_size, vocab_size)),
        }


def test_the_system_prompt_is_there(case: tuple[Converted, int]) -> None:
    converted, _ = case
    with GGUFFile.open(converted.conversion.source) as file:
        tokenizer = Tokenizer.from_metadata(file.metadata)
    token_ids = tokenizer.encode_chat(converted.conversion.texts.system_prompt)
    for folder in (converted.folder, converted.folder / "emulator", converted.folder / "cpu"):
        config = read_qnn_config(folder)
        assert config.system_prompt_tokens == tuple(token_ids)
        assert config.num_system_tokens == len(token_ids)
        key = np.fromfile(folder / "kv" / "layer_1_key_1.raw", "<f4")
        assert key.size == len(token_ids) * 32
        assert np.abs(key).max() > 0
    assert len(list((converted.folder / "kv").iterdir())) == 2 * 2 * 2


@pytest.mark.parametrize(("name", "suffix"), [("emulator", ".bin"), ("cpu", ".onnx")])
def test_the_other_folders_are_complete(
    case: tuple[Converted, int], name: str, suffix: str
) -> None:
    folder = case[0].folder / name
    config = read_qnn_config(folder)
    paths = paths_of(config)
    assert len(set(paths)) == 3 * len(SIZES.batch_sizes)  # nothing is shared between batch sizes
    assert all((folder / path).is_file() and path.endswith(suffix) for path in paths)


def test_the_report_is_written(case: tuple[Converted, int]) -> None:
    converted, _ = case
    report = json.loads((converted.folder / "report.json").read_bytes())
    assert len(report["graphs"]) == 6
    assert report["perplexity"]["is_held_out"]
    assert report["perplexity"]["quantised"] == pytest.approx(
        report["perplexity"]["float32"], rel=0.2
    )
    text = "\n".join(converted.report.lines())
    assert "chunk 1, batch size 8: worst row's cosine 0.9999" in text


def test_a_second_run_has_nothing_left_to_do(
    case: tuple[Converted, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    converted, _ = case

    def refuse(*arguments: object, **named: object) -> object:
        raise AssertionError("done again")

    monkeypatch.setattr(ChildProcesses, "run", refuse)
    monkeypatch.setattr(pipeline, "ProcessRuntime", refuse)
    monkeypatch.setattr("powerserve.convert.qnn.quantised_files.quantise_layers", refuse)
    assert convert_for_npu(converted.conversion) == converted.report


def test_a_refused_graph_is_not_delivered(case: tuple[Converted, int], tmp_path: Path) -> None:
    # Nothing can reach this cosine, so that the comparison itself need not be broken.
    strict = replace(
        case[0].conversion, output=tmp_path / "qnn", limits=GateLimits(max_cosine_loss=-1)
    )
    with pytest.raises(BackendError, match="compute something else: chunk 0 at batch size 1"):
        convert_for_npu(strict)
    assert not strict.output.exists()
    report = json.loads((strict.build / "report.json").read_bytes())
    assert len(report["failures"]) == 6
    forced = replace(strict, force=True)
    assert len(convert_for_npu(forced).failures) == 6
    assert (forced.output / "config.json").is_file()


def test_a_wrongly_compiled_graph_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler of QAIRT 2.51 gets batch size 16 wrong unless the lowering avoids its fault.

    When a later one gets it right, both this test and the way around it can go.
    """
    conversion = replace(
        tiny_conversion(tmp_path),
        sizes=replace(SIZES, batch_sizes=(16,)),
        num_chunks=1,
        with_lm_head=False,
    )
    assert not convert_for_npu(conversion).failures
    monkeypatch.setattr(request_module, "BATCH_16_GAIN", 1.0)
    with pytest.raises(BackendError, match=r"chunk 0 at batch size 16: .* outputs are wrong"):
        convert_for_npu(conversion)


def tensors_of(binary: BinaryInfo, graph_name: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    graph = next(graph for graph in binary.graphs if graph.name == graph_name)
    tensors = (*graph.inputs, *graph.outputs)
    return {tensor.name: (tensor.type_name, tensor.shape) for tensor in tensors}


def paths_of(config: QnnConfig) -> list[str]:
    return [entry.model_path for entry in config.compiled]
