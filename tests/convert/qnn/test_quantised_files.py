"""Quantised graphs on the disk: what is kept of a run that was stopped, and for other sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime", reason="the extra npu is not installed")

from npu_models import open_tiny
from powerserve.convert.qnn import calibration as calibration_module
from powerserve.convert.qnn.build_folder import BuildFolder
from powerserve.convert.qnn.calibration import Calibration
from powerserve.convert.qnn.plan import GraphSizes, Plan, make_plan
from powerserve.convert.qnn.quantised_files import QuantisedRecord, write_quantised
from powerserve.convert.qnn.source import NpuModel
from powerserve.storage.progress import SILENT

CALIBRATION = Calibration([list(range(40)), list(range(90, 50, -1))], num_threads=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> NpuModel:
    return open_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def quantised_layers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The layers that are quantised from now on, as they are."""
    done: list[int] = []
    real = calibration_module._quantise_layer

    def counted(model: NpuModel, layer: int, *others: Any) -> Any:
        done.append(layer)
        return real(model, layer, *others)

    monkeypatch.setattr(calibration_module, "_quantise_layer", counted)
    return done


def plan_of(model: NpuModel, num_chunks: int = 1, sizes: GraphSizes | None = None) -> Plan:
    sizes = sizes or GraphSizes((1, 8), 40, 64)
    return make_plan(model.config, "tiny", num_chunks, sizes, with_lm_head=True)


def write(
    model: NpuModel, plan: Plan, folder: Path, *, how: Calibration = CALIBRATION
) -> QuantisedRecord:
    return write_quantised(model, model.path, plan, how, BuildFolder(folder), SILENT)


def graphs_in(folder: Path) -> dict[str, bytes]:
    graphs = folder / "graphs"
    return {
        path.relative_to(graphs).as_posix(): path.read_bytes()
        for path in graphs.rglob("*")
        if path.is_file()
    }


def test_a_stopped_run_goes_on_with_the_next_layer(
    model: NpuModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantised_layers: list[int]
) -> None:
    whole = write(model, plan_of(model), tmp_path / "whole")
    assert quantised_layers == [0, 1, 2]  # the last is the LM head
    quantised_layers.clear()
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(calibration_module, "_quantise_layer", stopping_at(1))
        write(model, plan_of(model), tmp_path / "stopped")
    assert write(model, plan_of(model), tmp_path / "stopped") == whole
    assert quantised_layers == [0, 1, 2]
    assert graphs_in(tmp_path / "stopped") == graphs_in(tmp_path / "whole")


def test_other_sizes_use_the_same_layers(
    model: NpuModel, tmp_path: Path, quantised_layers: list[int]
) -> None:
    first = write(model, plan_of(model), tmp_path)
    quantised_layers.clear()
    other = plan_of(model, num_chunks=2, sizes=GraphSizes((4,), 32, 64))
    second = write(model, other, tmp_path)
    assert quantised_layers == []
    assert second.layer_errors == first.layer_errors
    assert second.key != first.key
    assert (tmp_path / "graphs" / "model_chunk_1" / "batch_4.onnx").is_file()


def test_another_way_of_quantising_starts_anew(
    model: NpuModel, tmp_path: Path, quantised_layers: list[int]
) -> None:
    write(model, plan_of(model), tmp_path)
    quantised_layers.clear()
    options = replace(CALIBRATION.quantisation, weight_bits=8)
    write(model, plan_of(model), tmp_path, how=replace(CALIBRATION, quantisation=options))
    assert quantised_layers == [0, 1, 2]


def test_a_damaged_layer_is_quantised_again(
    model: NpuModel, tmp_path: Path, quantised_layers: list[int]
) -> None:
    whole = write(model, plan_of(model), tmp_path)
    (layer,) = tmp_path.glob("layers/*/layer_1.npz")
    layer.write_bytes(layer.read_bytes()[:100])
    (tmp_path / "graphs" / "model_chunk_0" / "batch_8.onnx").unlink()
    quantised_layers.clear()
    assert write(model, plan_of(model), tmp_path) == whole
    assert quantised_layers == [1]


def test_an_lm_head_that_stays_on_the_cpu_is_not_quantised(
    model: NpuModel, tmp_path: Path, quantised_layers: list[int]
) -> None:
    plan = make_plan(model.config, "tiny", 1, GraphSizes((1,), 40, 64), with_lm_head=False)
    assert len(write(model, plan, tmp_path).layer_errors) == 2
    assert quantised_layers == [0, 1]
    assert not (tmp_path / "graphs" / "lm_head").exists()


def test_weights_are_kept_once_for_all_batch_sizes(model: NpuModel, tmp_path: Path) -> None:
    write(model, plan_of(model), tmp_path)
    folder = tmp_path / "graphs" / "model_chunk_0"
    assert sorted(path.name for path in folder.iterdir()) == [
        *("batch_1.onnx", "batch_8.onnx", "weights.bin"),
    ]
    write(model, plan_of(model, sizes=GraphSizes((1,), 40, 64)), tmp_path / "one")
    one = tmp_path / "one" / "graphs" / "model_chunk_0" / "weights.bin"
    assert (folder / "weights.bin").read_bytes() == one.read_bytes()


def stopping_at(last: int) -> Callable[..., Any]:
    real = calibration_module._quantise_layer

    def quantise(model: NpuModel, layer: int, *others: Any) -> Any:
        if layer == last:
            raise KeyboardInterrupt
        return real(model, layer, *others)

    return quantise
