"""/v1/completions: text to continue, without a chat template."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from powerserve.sampler.params import MAX_TOP_LOGPROBS
from powerserve.server.answer import Answer, Choice, Delta
from powerserve.server.errors import invalid
from powerserve.server.events import Ended, PromptScored
from powerserve.server.openai.fields import (
    DONE,
    GenerationFields,
    finish_reason,
    new_id,
    refuse_given,
)
from powerserve.server.openai.prompts import text_prompts
from powerserve.server.openai.usage import completion_logprobs, totals
from powerserve.server.original import generated_tokens
from powerserve.server.request import GenerationRequest, TextPrompt
from powerserve.server.serving import Serving
from powerserve.server.surface import Call, Events, Reply, sse_frame

DEFAULT_MAX_TOKENS = 16  # OpenAI's


class CompletionRequest(GenerationFields, kw_only=True):
    """The body."""

    prompt: str | list[str | int | list[int]] = ""
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: Any = None


async def completions(serving: Serving, call: Call) -> Reply | Events:
    """Continue one text or several."""
    body = call.decode(CompletionRequest)
    compat = serving.settings.compat
    request = _neutral(body, compat)
    if body.stream:
        return Events(_CompletionStream(body, request, compat).frames(serving))
    async with serving.answer(request) as answer:
        choices = await answer.choices()
        return Reply(_completion(body, _echoes(body, request, answer), answer, choices, compat))


def _neutral(body: CompletionRequest, compat: bool) -> GenerationRequest:
    """The request in neutral form. Raises ApiError or UsageError for what cannot be done."""
    refuse_given(body, {"suffix": "put the text around the gap into `prompt`"})
    if body.best_of not in (None, 1, body.num_choices):
        raise invalid("best_of is not supported by this server beyond n", "best_of")
    asked_for = body.n_predict if body.max_tokens is None else body.max_tokens
    if asked_for is None and not compat:
        asked_for = DEFAULT_MAX_TOKENS
    return GenerationRequest(
        model=body.model,
        prompts=text_prompts(body.prompt, "prompt"),
        sampling=body.sampling(generated_tokens(body.model, asked_for, compat), _top(body)),
        num_choices=body.num_choices,
        grammar=body.chosen_grammar(),
        score_prompts=bool(body.echo) and body.logprobs is not None,
    )


def _top(body: CompletionRequest) -> int | None:
    if body.logprobs is not None and not 0 <= body.logprobs <= MAX_TOP_LOGPROBS:
        raise invalid(f"logprobs must be between 0 and {MAX_TOP_LOGPROBS}", "logprobs")
    return body.logprobs


def _completion(
    body: CompletionRequest, echoes: list[str], answer: Answer, choices: list[Choice], compat: bool
) -> dict[str, Any]:
    return {
        "id": new_id("powerserve-completion" if compat else "cmpl"),
        "object": "text_completion",
        "created": int(time.time()),
        "model": body.model or answer.runner.name,
        "choices": [
            {
                "text": echoes[index] + choice.text,
                "index": index,
                "logprobs": completion_logprobs(choice.logprobs, len(echoes[index]), choice.prompt),
                "finish_reason": finish_reason(choice.ended),
            }
            for index, choice in enumerate(choices)
        ],
        **totals([choice.ended for choice in choices], body.num_choices, compat),
    }


def _echoes(body: CompletionRequest, request: GenerationRequest, answer: Answer) -> list[str]:
    """What comes before each choice: its prompt with `echo`, else nothing."""
    if not body.echo:
        return [""] * request.num_generations
    decode = answer.runner.loaded.tokenizer.decode
    texts = [
        prompt.text if isinstance(prompt, TextPrompt) else decode(prompt.token_ids)
        for prompt in text_prompts(body.prompt, "prompt")
    ]
    return [text for text in texts for _ in range(request.num_choices)]


class _CompletionStream:
    """Writes the chunks of one answer."""

    def __init__(self, body: CompletionRequest, request: GenerationRequest, compat: bool) -> None:
        self._body = body
        self._request = request
        self._compat = compat
        self._endings: dict[int, Ended] = {}
        self._offsets: dict[int, int] = {}  # characters of each choice so far
        self._base = {
            "id": new_id("powerserve-completion" if compat else "cmpl"),
            "object": "text_completion",
            "created": int(time.time()),
            "model": body.model,
        }

    async def frames(self, serving: Serving) -> AsyncIterator[bytes]:
        """The whole stream."""
        async with serving.answer(self._request) as answer:
            self._base["model"] = self._base["model"] or answer.runner.name
            echoes = _echoes(self._body, self._request, answer)
            for index, echo in enumerate(echoes):
                self._offsets[index] = len(echo)
                if echo and not self._request.score_prompts:
                    yield self._chunk(index, echo)
            async for delta in answer.deltas():
                if delta.prompt is None:
                    yield self._delta_frame(delta)
                else:
                    yield self._prompt_frame(delta.choice, echoes[delta.choice], delta.prompt)
        if self._body.wants_usage:
            yield self._usage_frame()
        yield DONE

    def _delta_frame(self, delta: Delta) -> bytes:
        offset = self._offsets[delta.choice]
        self._offsets[delta.choice] = offset + len(delta.content.text)
        logprobs = completion_logprobs(delta.logprobs, offset)
        reason = None
        if delta.ended is not None:
            self._endings[delta.choice] = delta.ended
            reason = finish_reason(delta.ended)
        return self._chunk(delta.choice, delta.content.text, logprobs, reason)

    def _prompt_frame(self, index: int, echo: str, prompt: PromptScored) -> bytes:
        return self._chunk(index, echo, completion_logprobs((), len(echo), prompt))

    def _usage_frame(self) -> bytes:
        endings = [self._endings[index] for index in range(self._request.num_generations)]
        ending = totals(endings, self._request.num_choices, self._compat)
        return sse_frame(self._base | {"choices": []} | ending)

    def _chunk(
        self,
        index: int,
        text: str,
        logprobs: dict[str, Any] | None = None,
        reason: str | None = None,
    ) -> bytes:
        choice = {"text": text, "index": index, "logprobs": logprobs, "finish_reason": reason}
        usage = {"usage": None} if self._body.wants_usage else {}
        return sse_frame(self._base | {"choices": [choice]} | usage)
