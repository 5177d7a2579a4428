"""From tokens to text."""

from __future__ import annotations

from pathlib import Path

import pytest

from powerserve import LLM, SamplingParams
from powerserve.engine.generation import TextGeneration
from tiny_models import write_tiny_model


@pytest.mark.parametrize("is_visible", [False, True])
def test_control_tokens_are_part_of_the_text_where_asked_for(
    tmp_path: Path, is_visible: bool
) -> None:
    with LLM(write_tiny_model(tmp_path / "tiny.gguf")) as llm:
        control = llm.loaded.tokenizer.token_id("<|im_start|>")
        assert control is not None
        params = SamplingParams(temperature=0, max_tokens=2, logit_bias={control: 1e6})
        engine, tokenizer = llm.loaded.engine, llm.loaded.tokenizer
        visible = {control} if is_visible else ()
        generation = TextGeneration(engine, engine.add([1], params), tokenizer, visible=visible)
        while engine.has_work:
            for event in engine.step():
                generation.feed(event)
        assert generation.completion().text == "<|im_start|>" * 2 * is_visible
