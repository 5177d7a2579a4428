"""K and V of a system prompt, in the original's files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from batches import Tokens, batch_of
from npu_models import cpu_chunk, open_tiny
from powerserve.convert.qnn.lowering import LoweringOptions
from powerserve.convert.qnn.system_prompt import write_system_prompt
from powerserve.core.errors import ContextLengthError
from tiny_models import TinyModel
from tiny_reference import ReferenceRunner, load_reference

PROMPT = (9, 4, 250, 31, 7)


def test_files_hold_what_the_reference_computes(tmp_path: Path) -> None:
    model = open_tiny(tmp_path, TinyModel("qwen2"))
    chunks = [cpu_chunk(model, layers=(layer, layer + 1)) for layer in range(2)]
    write_system_prompt(model, chunks, PROMPT, tmp_path / "qnn")
    runner = ReferenceRunner(load_reference(model.path))
    runner.run(batch_of(Tokens(PROMPT, range(5))))
    for layer in range(2):
        keys, values = runner.cache.load(layer, np.arange(5))
        for head in range(2):
            expected = {"key": keys[:, head] / np.sqrt(16), "value": values[:, head]}
            for kind, rows in expected.items():
                path = tmp_path / "qnn" / "kv" / f"layer_{layer}_{kind}_{head}.raw"
                found = np.frombuffer(path.read_bytes(), "<f4").reshape(5, 16)
                np.testing.assert_allclose(found, rows, atol=1e-5)
    assert len(list((tmp_path / "qnn" / "kv").iterdir())) == 2 * 2 * 2


def test_files_hold_what_is_in_a_float16_cache(tmp_path: Path) -> None:
    model = open_tiny(tmp_path)
    chunk = cpu_chunk(model, options=LoweringOptions())
    write_system_prompt(model, [chunk], PROMPT, tmp_path)
    found = np.frombuffer((tmp_path / "kv" / "layer_1_value_0.raw").read_bytes(), "<f4")
    np.testing.assert_array_equal(found.reshape(5, 16), chunk.values(1, 0, 5).astype(np.float32))


def test_a_prompt_must_fit_into_the_cache(tmp_path: Path) -> None:
    model = open_tiny(tmp_path)
    with pytest.raises(ContextLengthError):
        write_system_prompt(model, [cpu_chunk(model)], [1] * 41, tmp_path)
