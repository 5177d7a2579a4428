"""K and V of a system prompt, in the original's files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from batches import Tokens, batch_of
from npu_models import open_tiny
from powerserve.convert.qnn.system_prompt import write_system_prompt
from tiny_models import TinyModel
from tiny_reference import ReferenceRunner, load_reference

PROMPT = (9, 4, 250, 31, 7)


def test_files_hold_what_the_reference_computes(tmp_path: Path) -> None:
    model = open_tiny(tmp_path, TinyModel("qwen2"))
    write_system_prompt(model, PROMPT, tmp_path / "qnn")
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
