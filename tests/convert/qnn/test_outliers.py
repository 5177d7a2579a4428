"""Stat files name the heads and neurons with the largest activations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from npu_models import open_tiny
from powerserve.backend.base import FloatArray
from powerserve.convert.qnn.calibration import Calibration
from powerserve.convert.qnn.outliers import (
    OutlierCounts,
    float_parts,
    write_stat_files,
)
from powerserve.convert.qnn.source import NpuModel
from powerserve.core.errors import ConfigError, UsageError

CALIBRATION = Calibration((tuple(range(30)),), num_threads=1)


@pytest.fixture
def model(tmp_path: Path) -> NpuModel:
    return open_tiny(tmp_path)


def write_stats(model: NpuModel, folder: Path) -> None:
    assert list(write_stat_files(model, CALIBRATION, folder)) == [0, 1]


def test_the_loudest_come_first(
    model: NpuModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = model.weight

    def louder(name: str) -> FloatArray:
        weight = original(name).copy()
        if name == "blk.1.attn_v.weight":
            weight[16:] *= 50  # the second of two KV heads, which query heads 2 and 3 share
        if name == "blk.0.ffn_up.weight":
            weight[[7, 93]] *= np.array([[100], [300]], np.float32)
        return weight

    monkeypatch.setattr(model, "weight", louder)
    write_stats(model, tmp_path)
    heads = json.loads((tmp_path / "attn_1_stat.json").read_text())
    neurons = json.loads((tmp_path / "ffn_0_stat.json").read_text())
    assert set(heads[:2]) == {2, 3}
    assert neurons[:2] == [93, 7]
    assert sorted(heads) == list(range(4))
    assert sorted(neurons) == list(range(128))


def test_the_first_of_each_file_stay_in_floating_point(model: NpuModel, tmp_path: Path) -> None:
    write_stats(model, tmp_path)
    counts = OutlierCounts(num_heads=1, num_neurons=2, neurons_by_layer={1: 5})
    parts = float_parts(tmp_path, model.config, counts, ffn_layers=frozenset({0}))
    neurons = json.loads((tmp_path / "ffn_1_stat.json").read_text())
    assert parts.neurons[1] == set(neurons[:5])
    assert [len(parts.heads[layer]) for layer in (0, 1)] == [1, 1]
    assert parts.ffn_layers == {0}


def test_no_file_is_needed_where_nothing_is_wanted(model: NpuModel, tmp_path: Path) -> None:
    parts = float_parts(tmp_path / "missing", model.config, OutlierCounts())
    assert (parts.heads, parts.neurons) == ({}, {})


def test_files_that_do_not_fit_are_refused(model: NpuModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file .*attn_0_stat\.json"):
        float_parts(tmp_path, model.config, OutlierCounts(num_heads=1))
    (tmp_path / "attn_0_stat.json").write_text("[0, 1, 2]")
    with pytest.raises(ConfigError, match="does not list the 4 heads of this model"):
        float_parts(tmp_path, model.config, OutlierCounts(num_heads=1))
    with pytest.raises(UsageError, match="5 heads cannot stay in floating point: there are 4"):
        float_parts(tmp_path, model.config, OutlierCounts(num_heads=5))
