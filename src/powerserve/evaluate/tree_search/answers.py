"""What the target answers. It does not depend on speculation, so it is computed only once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from powerserve.core.errors import ContextLengthError, UsageError
from powerserve.llm import LLM
from powerserve.sampler.params import SamplingParams
from powerserve.storage.progress import SILENT, Progress

LEAST_TOKENS = 2  # the first token comes from the prompt; speculation starts with the second


@dataclass(frozen=True, slots=True)
class KnownAnswer:
    """A prompt and the target's greedy answer to it, the end token included."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]


def known_answers(
    target: LLM,
    prompts: Sequence[str],
    *,
    max_tokens: int,
    chat: bool = False,
    progress: Progress = SILENT,
) -> list[KnownAnswer]:
    """The target's greedy answers of at most `max_tokens` tokens, in the prompts' order.

    With `chat`, prompts are a user's messages, otherwise texts to be continued. Raises
    ContextLengthError if prompt and answer exceed the context, UsageError if no answer is long
    enough to speculate about.
    """
    encoded = [_encode(target, prompt, chat) for prompt in prompts]
    _check_lengths(target, encoded, max_tokens)
    params = SamplingParams(temperature=0, max_tokens=max_tokens)
    answers: list[KnownAnswer] = []
    with progress.count("the target's tokens", max_tokens * len(prompts)) as advance:
        for prompt_ids in encoded:
            token_ids = []
            for token_id in _token_ids(target, prompt_ids, params):
                token_ids.append(token_id)
                advance(1)
            advance(max_tokens - len(token_ids))
            answers.append(KnownAnswer(tuple(prompt_ids), tuple(token_ids)))
    if all(len(answer.token_ids) < LEAST_TOKENS for answer in answers):
        raise UsageError(
            f"the model answers with fewer than {LEAST_TOKENS} tokens, so there is nothing to "
            "speculate about; give other prompts (--prompt-file), or try --chat"
        )
    return answers


def _encode(target: LLM, prompt: str, chat: bool) -> list[int]:
    if chat:
        return target.encode_chat([{"role": "user", "content": prompt}])
    return target.loaded.tokenizer.encode(prompt)


def _token_ids(target: LLM, prompt_ids: list[int], params: SamplingParams) -> Iterator[int]:
    for piece in target.pieces(target.start(prompt_ids, params)):
        if piece.sampled is not None:
            yield piece.sampled.token_id


def _check_lengths(target: LLM, prompts: Sequence[list[int]], max_tokens: int) -> None:
    if not all(prompts):
        raise UsageError("a prompt is empty, and this model needs some text to continue")
    context = target.loaded.engine.config.context_size
    longest = max(map(len, prompts))
    if longest + max_tokens > context:
        raise ContextLengthError(
            f"a prompt of {longest:,} tokens and an answer of {max_tokens:,} do not fit into the "
            f"context of {context:,}; shorten the prompt or choose a larger context (-c)"
        )
