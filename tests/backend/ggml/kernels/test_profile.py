"""Profiles of steps that our own kernels compute."""

from __future__ import annotations

from pathlib import Path

import pytest

from batches import Tokens, batch_of, shape_of
from powerserve.backend.ggml.backend import GgmlBackend, GgmlOptions
from powerserve.backend.ggml.kernels.choice import KernelChoice
from powerserve.backend.ggml.kernels.locate import ENVIRONMENT_VARIABLE
from powerserve.core import dtypes
from powerserve.model.config import config_from_metadata
from powerserve.model.registry import build_graph
from powerserve.storage.gguf import GGUFFile
from tiny_models import TinyModel, write_tiny_model

NUM_CELLS = 32


@pytest.mark.parametrize("num_tokens", [1, 9])
def test_a_fused_product_is_known_by_its_weights(
    kernel_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_tokens: int
) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(kernel_file))
    path = write_tiny_model(tmp_path / "tiny.gguf", TinyModel(dtype="Q8_0", num_layers=1))
    backend = GgmlBackend(GgmlOptions(num_threads=1, kernels=KernelChoice.NATIVE))
    with GGUFFile.open(path) as file:
        config = config_from_metadata(file.metadata, file.tensors)
        model = backend.load(config, build_graph(config), file.tensors)
        cache = model.new_cache(NUM_CELLS, dtypes.F32)
        batch = batch_of(Tokens([5] * num_tokens, cells=list(range(num_tokens))))
        executable = model.compile(shape_of(batch, NUM_CELLS), cache)
        executable.run(batch)
        times = executable.profile(batch)
    assert [time.weight for time in times if time.operation == "PRODUCT"] == [
        "blk.0.attn_q+attn_k+attn_v.weight",
        "blk.0.attn_output.weight",
        "blk.0.ffn_gate+ffn_up.weight",
        "blk.0.ffn_down.weight",
        "output.weight",
    ]
    executable.close()
    cache.close()
    model.close()
    backend.close()
