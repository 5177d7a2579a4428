"""The Python API on the real default model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from powerserve import LLM, LoadOptions, SamplingParams, SpeculationMode, SpeculationOptions
from powerserve.core.errors import ContextLengthError, PowerServeError, UsageError
from tiny_models import write_tiny_model

GREEDY = SamplingParams(temperature=0, max_tokens=16)
CAPITAL = "The capital of France is"


@pytest.fixture(scope="module")
def llm(smollm2: Path) -> Iterator[LLM]:
    with LLM(smollm2, LoadOptions(context_size=512)) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = write_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf")
    with LLM(path) as loaded:
        yield loaded


def test_generate_answers(llm: LLM) -> None:
    completion = llm.generate(CAPITAL, GREEDY)
    assert completion.text.startswith(" Paris")
    assert completion.num_prompt_tokens == 5
    assert len(completion.token_ids) == 16
    assert completion.finish_reason == "length"
    assert completion.timings.prefill_s > 0 and completion.timings.decode_s > 0


def test_streamed_pieces_are_the_text(llm: LLM) -> None:
    whole = llm.generate(CAPITAL, GREEDY).text
    assert "".join(llm.stream(CAPITAL, GREEDY)) == whole


def test_stop_strings_end_the_text_before_them(llm: LLM) -> None:
    whole = llm.generate(CAPITAL, GREEDY).text
    stop = whole[len(whole) // 2 :][:4]
    stopped = llm.generate(CAPITAL, GREEDY, stop=(stop,))
    assert stopped.finish_reason == "stop"
    assert stopped.text == whole[: whole.index(stop)]


def test_token_ids_can_be_given_and_a_second_run_reuses_them(llm: LLM) -> None:
    ids = llm.loaded.tokenizer.encode("One two three four five six seven eight nine ten")
    first = llm.generate(ids, GREEDY)
    second = llm.generate(ids, GREEDY)
    assert second.num_cached_tokens == len(ids) - 1
    assert second.text == first.text


def test_several_prompts_run_together(llm: LLM) -> None:
    prompts = [CAPITAL, "Two plus two is", "Water boils at"]
    texts = [completion.text for completion in llm.generate_all(prompts, GREEDY)]
    assert texts[0].startswith(" Paris")
    assert len(set(texts)) == 3


def test_chat_uses_the_template(llm: LLM) -> None:
    messages = [{"role": "user", "content": "Say hello."}]
    llm.chat(messages, GREEDY)  # both others find the prompt computed: near ties go the same way
    completion = llm.chat(messages, GREEDY)
    assert completion.text.strip()
    assert "<|im_end|>" not in completion.text
    assert "".join(llm.stream_chat(messages, GREEDY)) == completion.text


def test_leaving_a_stream_early_frees_its_cells(llm: LLM) -> None:
    stream = llm.stream("Once upon a time", GREEDY.replace(max_tokens=400))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert not llm.loaded.engine.has_work


def test_two_streams_can_be_read_in_turns(llm: LLM) -> None:
    expected = [llm.generate(prompt, GREEDY).text for prompt in (CAPITAL, "Two plus two is")]
    streams = [llm.stream(prompt, GREEDY) for prompt in (CAPITAL, "Two plus two is")]
    texts = ["", ""]
    live = [0, 1]
    while live:
        for index in list(live):
            piece = next(streams[index], None)
            if piece is None:
                live.remove(index)
            else:
                texts[index] += piece
    assert texts == expected


def test_log_probabilities_come_on_request(llm: LLM) -> None:
    completion = llm.generate(CAPITAL, GREEDY, logprobs=3, max_tokens=2)
    for sample in completion.samples:
        assert sample.logprob is not None and sample.logprob <= 0
        assert len(sample.top_logprobs) == 3
        assert sample.top_logprobs[0][0] == sample.token_id  # greedy takes the best
    assert llm.generate(CAPITAL, GREEDY).samples[0].logprob is None


def test_deterministic_runs_repeat_exactly(smollm2: Path) -> None:
    params = SamplingParams(seed=3, max_tokens=24)
    options = LoadOptions(context_size=256, deterministic=True)
    texts = []
    for _ in range(2):
        with LLM(smollm2, options) as fresh:
            texts.append([fresh.generate(CAPITAL, params).text for _ in range(2)])
    assert texts[0] == texts[1]
    assert texts[0][0] == texts[0][1]


def test_errors_are_sentences(tiny: LLM) -> None:
    with pytest.raises(ContextLengthError, match="context holds 512"):
        tiny.generate([1] * 600, GREEDY)
    with pytest.raises(UsageError, match="temperature"):
        tiny.generate([1], GREEDY, temperature=-1)
    with pytest.raises(PowerServeError):
        LLM("no-such-model-anywhere")


def test_an_error_reaches_the_stream_it_belongs_to(tiny: LLM) -> None:
    nothing = dict.fromkeys(range(tiny.loaded.config.vocab_size), float("-inf"))
    sound = tiny.stream([1, 2], GREEDY)
    broken = tiny.stream([1, 2], GREEDY, logit_bias=nothing)
    next(sound)
    with pytest.raises(UsageError, match="no token"):
        next(broken)
    assert list(sound) is not None


def test_a_draft_model_guesses_and_must_share_the_vocabulary(smollm2: Path, tmp_path: Path) -> None:
    options = LoadOptions(
        context_size=256, speculation=SpeculationOptions(mode=SpeculationMode.DRAFT)
    )
    with LLM(smollm2, options, draft=smollm2) as llm:
        counters = llm.generate(CAPITAL, GREEDY).speculation
    assert counters is not None
    assert counters.num_draft_forwards > 0
    assert counters.tokens_per_iteration > 1.5  # it knows itself well
    stranger = write_tiny_model(tmp_path / "stranger.gguf")
    with pytest.raises(UsageError, match="stranger cannot draft for this model: token"):
        LLM(smollm2, options, draft=stranger)
    with pytest.raises(UsageError, match="needs a draft model"):
        LLM(smollm2, options)
