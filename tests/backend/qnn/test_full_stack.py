"""Converted models through the whole stack: Qualcomm's emulator says what the CPU says.

The CPU executes the same quantised graphs. Where its two best tokens lie closer together than the
error that the acceptance gate measured, either may come.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import takewhile
from typing import NamedTuple

import pytest

pytest.importorskip("onnxruntime_qnn", reason="onnxruntime-qnn has no wheel for this platform")

from npu_conversions import SIZES, SYSTEM_PROMPT, Converted
from powerserve.backend.qnn.options import NpuMode, NpuOptions
from powerserve.convert.qnn.report import ConversionReport
from powerserve.engine.loader import LoadOptions
from powerserve.llm import LLM
from powerserve.sampler.params import SamplingParams
from powerserve.speculative.options import SpeculationMode, SpeculationOptions, TreeParams
from powerserve.storage.resolve import ModelSource

NUM_TOKENS = 20
NO_TREES = SpeculationOptions(mode=SpeculationMode.OFF)
PROMPTS = (SYSTEM_PROMPT + "the king", "in the hall")
TREES = SpeculationOptions(
    mode=SpeculationMode.TREE, tree=TreeParams(draft_batch_size=SIZES.batch_sizes[-1], min_prob=0.0)
)


class Step(NamedTuple):
    """What the CPU chose, and how much better it was than the next best."""

    token_id: int
    margin: float  # of the logits


def source_of(converted: Converted, *, with_npu_files: bool = True) -> ModelSource:
    weights = converted.conversion.source
    folder = converted.folder.parent if with_npu_files else None
    return ModelSource("tiny", weights, weights, folder=folder)


def load(converted: Converted, mode: NpuMode, draft: ModelSource | None = None) -> LLM:
    """With a draft model, trees are as large as the largest batch size."""
    return LLM(
        replace(source_of(converted), draft=draft),
        LoadOptions(
            num_threads=1,
            npu=NpuOptions(mode),
            speculation=NO_TREES if draft is None else TREES,
        ),
    )


def steps_on_cpu(llm: LLM, prompt: list[int]) -> list[Step]:
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=2)
    steps = []
    for sample in llm.generate(prompt, params).samples:
        (_, best), (_, second) = sample.top_logprobs
        steps.append(Step(sample.token_id, best - second))
    return steps


def measured_error(report: ConversionReport) -> float:
    """How far a logit may be off, from what the gate saw of each part: the errors add up."""
    worst: dict[str, float] = {}
    scale = 0.0
    for graph in report.graphs:
        output = next(each for each in graph.outputs if each.name in ("out", "logits"))
        worst[graph.part] = max(worst.get(graph.part, 0.0), output.relative_error)
        scale = max(scale, output.scale) if output.name == "logits" else scale
    return scale * sum(worst.values())


def assert_agrees(llm: LLM, prompt: list[int], steps: list[Step], error: float) -> None:
    """Generate; where a near tie went the other way, go on behind it as the CPU does."""
    expected = [step.token_id for step in steps]
    done = 0
    while done < len(steps):
        params = SamplingParams(temperature=0, max_tokens=len(steps) - done, ignore_eos=True)
        found = llm.generate(prompt + expected[:done], params).token_ids
        pairs = zip(found, expected[done:], strict=True)
        done += sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if done < len(steps):
            assert steps[done].margin <= error, f"token {done} differs"
            done += 1


def test_the_emulator_gives_the_cpus_tokens(npu_model: Converted) -> None:
    error = measured_error(npu_model.report)
    with load(npu_model, NpuMode.CPU) as llm:
        prompts = [llm.loaded.tokenizer.encode(each) for each in PROMPTS]
        steps = [steps_on_cpu(llm, prompt) for prompt in prompts]
        assert llm.generate(prompts[0], max_tokens=1).num_cached_tokens > 0
    margins = [step.margin for each in steps for step in each]
    assert sum(margin > error for margin in margins) >= 0.9 * len(margins)

    with load(npu_model, NpuMode.EMULATOR) as llm:
        for prompt, each in zip(prompts, steps, strict=True):
            assert_agrees(llm, prompt, each, error)

    on_cpu = source_of(npu_model, with_npu_files=False)  # not quantised: a good draft model
    with load(npu_model, NpuMode.EMULATOR, on_cpu) as llm:
        assert_agrees(llm, prompts[0], steps[0], error)
        speculation = llm.generate(prompts[1], max_tokens=8, temperature=0).speculation
        assert speculation is not None and speculation.num_accepted_tokens > 0


def test_the_draft_model_may_have_npu_files_too(npu_model: Converted) -> None:
    with load(npu_model, NpuMode.CPU) as llm:
        prompts = [llm.loaded.tokenizer.encode(each) for each in PROMPTS]
        steps = [steps_on_cpu(llm, prompt) for prompt in prompts]
    with load(npu_model, NpuMode.CPU, source_of(npu_model)) as llm:
        for prompt, each in zip(prompts, steps, strict=True):
            assert_agrees(llm, prompt, each, error=0.0)
            speculation = llm.generate(prompt, max_tokens=NUM_TOKENS, temperature=0).speculation
            assert speculation is not None
            # It guesses with the very graphs that verify, but is never sure: a random model.
            assert speculation.num_accepted_tokens > speculation.num_iterations / 2


def test_the_system_prompt_is_not_computed_again(npu_model: Converted) -> None:
    with load(npu_model, NpuMode.CPU) as llm:
        num_system = len(llm.loaded.tokenizer.encode(SYSTEM_PROMPT))
        answer = llm.generate(PROMPTS[0], max_tokens=2)
        assert answer.num_cached_tokens == num_system
        assert llm.generate(PROMPTS[1], max_tokens=2).num_cached_tokens == 0


def test_without_an_npu_the_cpu_runs_the_model(
    npu_model: Converted, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("platform.system", lambda: "Linux")
    with load(npu_model, NpuMode.AUTO) as llm:
        assert llm.loaded.backend.name == "ggml"
    assert [record.message for record in caplog.records] == [
        "tiny runs on the CPU: this machine (Linux, x86_64) has no Snapdragon NPU"
    ]
