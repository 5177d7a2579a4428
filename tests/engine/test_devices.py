"""A model goes to the NPU, or to the CPU where that fails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from powerserve.backend.qnn import opening
from powerserve.backend.qnn.config_file import write_qnn_config
from powerserve.backend.qnn.options import NpuMode, NpuOptions
from powerserve.backend.qnn.runtime.base import CompiledGraph, GraphRequest
from powerserve.core.errors import BackendError, ConfigError
from powerserve.engine.devices import Devices
from powerserve.engine.loader import LoadOptions
from powerserve.engine.model_files import ModelFiles
from powerserve.llm import LLM
from powerserve.model.config import config_from_metadata
from powerserve.model.registry import build_graph
from powerserve.storage.gguf import GGUFFile
from powerserve.storage.resolve import ModelSource, resolve_model
from reference_runtime import ReferenceRuntime, npu_folder
from tiny_models import write_tiny_model


class BrokenRuntime(ReferenceRuntime):
    """A device that takes no binary."""

    closed = False

    def load(self, binary: Path, graphs: Sequence[GraphRequest]) -> list[CompiledGraph]:
        raise BackendError(f"{binary.name} is for another SoC")

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def source(tmp_path: Path) -> ModelSource:
    """A model folder with (empty) NPU files."""
    weights = tmp_path / "model" / "ggml" / "weights.gguf"
    weights.parent.mkdir(parents=True)
    file = GGUFFile.open(write_tiny_model(weights))
    config = config_from_metadata(file.metadata, file.tensors)
    folder = npu_folder(tmp_path / "model" / "qnn", config)
    write_qnn_config(folder.path, folder.files)
    return resolve_model(tmp_path / "model")


@pytest.fixture(params=[ReferenceRuntime, BrokenRuntime])
def runtime(
    request: pytest.FixtureRequest, source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> ReferenceRuntime:
    """What this machine, a Snapdragon, is made to execute graphs with."""
    file = GGUFFile.open(source.weights)
    config = config_from_metadata(file.metadata, file.tensors)
    made: ReferenceRuntime = request.param(config, build_graph(config), file.tensors)
    monkeypatch.setattr(opening, "check_npu", lambda: None)
    monkeypatch.setattr(opening, "open_runtime", lambda options, num_threads: made)
    return made


def options(mode: NpuMode) -> LoadOptions:
    return LoadOptions(num_threads=1, npu=NpuOptions(mode))


@pytest.mark.parametrize("runtime", [ReferenceRuntime], indirect=True)
def test_the_npu_is_used_by_itself(source: ModelSource, runtime: ReferenceRuntime) -> None:
    with LLM(source, options(NpuMode.AUTO)) as llm:
        assert llm.loaded.backend.name == "qnn"
        assert llm.loaded.plan.context_size == llm.loaded.plan.num_cells == 64
        llm.generate("hello", max_tokens=3)
    assert runtime.runs
    runtime.runs.clear()
    with LLM(source, options(NpuMode.OFF)) as llm:
        assert llm.loaded.backend.name == "ggml"
        llm.generate("hello", max_tokens=3)
    assert not runtime.runs


@pytest.mark.parametrize("runtime", [BrokenRuntime], indirect=True)
def test_a_device_that_refuses_is_closed(
    source: ModelSource, runtime: BrokenRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    with LLM(source, options(NpuMode.AUTO)) as llm:
        assert llm.loaded.backend.name == "ggml"
        assert runtime.closed
        llm.generate("hello", max_tokens=3)
    assert [record.message for record in caplog.records] == [
        "model runs on the CPU: chunk_0.bin is for another SoC"
    ]
    with pytest.raises(BackendError, match="another SoC"):
        LLM(source, options(NpuMode.REQUIRED))


@pytest.mark.parametrize("runtime", [ReferenceRuntime], indirect=True)
def test_a_broken_description_is_no_reason_to_stop(
    source: ModelSource, runtime: ReferenceRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    assert source.folder is not None
    (source.folder / "qnn" / "config.json").write_text("{}")
    with LLM(source, options(NpuMode.AUTO)) as llm:
        assert llm.loaded.backend.name == "ggml"
    assert "config.json" in caplog.records[0].message
    with pytest.raises(ConfigError, match="graphs"):
        LLM(source, options(NpuMode.REQUIRED))


@pytest.mark.parametrize("runtime", [ReferenceRuntime], indirect=True)
def test_a_draft_model_may_stay_on_the_cpu(source: ModelSource, runtime: ReferenceRuntime) -> None:
    devices = Devices(options(NpuMode.REQUIRED))
    plain = replace(source, folder=None)
    with GGUFFile.open(source.weights) as weights:
        target = devices.load(ModelFiles.read(source, weights), 32)
        draft = devices.load(ModelFiles.read(plain, weights), 32, is_draft=True)
        assert (target.backend.name, draft.backend.name) == ("qnn", "ggml")
    for placed in (draft, target):
        placed.model.close()
    devices.close()
