"""Profiles of steps: every operation is in them, and they compute what the step computes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from command_line import status_of
from powerserve.backend.base import Backend, LoadedModel
from powerserve.backend.ggml.backend import GgmlBackend, GgmlOptions
from powerserve.backend.reference import ReferenceBackend
from powerserve.core import dtypes
from powerserve.evaluate.operation_profile import profile_step
from powerserve.evaluate.scoring import StepSettings
from powerserve.executor.chain import chain_batch
from powerserve.executor.executor import step_shape
from tiny_models import TinyModel, write_tiny_model
from trees import load

LAYERS = 3
TOKENS = np.array([5, 9, 2, 7, 1, 3], np.int32)


@pytest.fixture(scope="module", params=["ggml", "reference"])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    made = GgmlBackend(GgmlOptions(num_threads=2)) if request.param == "ggml" else None
    backend = made or ReferenceBackend()
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    return write_tiny_model(path, TinyModel("qwen2", num_layers=LAYERS))


@pytest.fixture(scope="module")
def model(backend: Backend, tiny: Path) -> Iterator[LoadedModel]:
    loaded = load(backend, tiny)
    yield loaded
    loaded.close()


def logits_after(model: LoadedModel, *, profiled: bool) -> np.ndarray:
    """Of the last token, after a step with the others that was profiled or simply run."""
    cache = model.new_cache(256, dtypes.F32)
    first, last = chain_batch(TOKENS[:-1], 0), chain_batch(TOKENS[-1:], len(TOKENS) - 1)
    executable = model.compile(step_shape(first, 256), cache)
    (executable.profile if profiled else executable.run)(first)
    executable.close()
    executable = model.compile(step_shape(last, 256), cache)
    logits = executable.run(last).copy()
    executable.close()
    cache.close()
    return logits


def test_a_profiled_step_computes_the_same(model: LoadedModel) -> None:
    expected = logits_after(model, profiled=False)
    np.testing.assert_allclose(logits_after(model, profiled=True), expected, rtol=1e-5, atol=1e-5)


def test_every_matrix_of_every_layer_is_counted(model: LoadedModel) -> None:
    profile = profile_step(model, num_tokens=4, depth=300, repeats=2, settings=StepSettings(128))
    matrices = {
        kind.weight: kind.count for kind in profile.kinds if kind.operation in ("MUL_MAT", "Linear")
    }
    blocks = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    assert matrices == {**dict.fromkeys(blocks, LAYERS), "output": 1}
    attention = [
        kind.count for kind in profile.kinds if kind.operation in ("FLASH_ATTN_EXT", "Attention")
    ]
    assert attention == [LAYERS]
    seconds = [kind.seconds for kind in profile.kinds]
    assert seconds == sorted(seconds, reverse=True) and seconds[-1] > 0
    assert profile.total_s == pytest.approx(sum(seconds))
    assert (profile.num_tokens, profile.depth) == (4, 300)
    assert profile.fastest_profile_s > 0 and profile.fastest_step_s > 0


def test_bench_prints_a_table_for_each_step(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("-p", "8", "-n", "2", "-r", "1", "--profile")
    assert status_of("bench", "-m", tiny, *flags) == 0
    prefill, decode = capsys.readouterr().out.strip().split("\n\n")[-2:]
    assert prefill.startswith("| step of 8 tokens after 0 |")
    assert decode.startswith("| step of 1 token after 0 |")
    names = [line.split(" |")[0] for line in decode.splitlines()[-3:]]
    assert names == ["| all", "| fastest step, one by one", "| fastest step, as it runs"]


def test_bench_gives_profiles_as_json(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("-p", "0", "-n", "1", "-r", "1", "--depth", "20", "--profile", "-o", "json")
    assert status_of("bench", "-m", tiny, *flags) == 0
    (profile,) = json.loads(capsys.readouterr().out)["profiles"]
    assert (profile["num_tokens"], profile["depth"]) == (1, 20)
    assert profile["total_s"] == pytest.approx(sum(k["seconds"] for k in profile["kinds"]))
