"""From a neutral request to what the engine gets, for one model: tokens, grammar, parsers.

All of it can take long, or forever if a template had its way: it runs in a worker thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from powerserve.core.errors import ContextLengthError, TemplateError
from powerserve.engine.loader import LoadedEngine
from powerserve.sampler.after_reasoning import AfterReasoning
from powerserve.sampler.constraint import Constraint
from powerserve.sampler.grammar import Grammar
from powerserve.sampler.params import SamplingParams
from powerserve.server.content import ContentParser, PlainText
from powerserve.server.engine_thread import Task
from powerserve.server.reasoning import (
    CLOSING,
    MARKUP,
    ReasoningParser,
    can_reason,
    opens_reasoning,
)
from powerserve.server.request import (
    ChatPrompt,
    GenerationRequest,
    Prompt,
    TextPrompt,
    TokenPrompt,
    Tools,
)
from powerserve.server.tool_calls import GENERIC, ToolCallFormat, tool_call_format
from powerserve.server.tool_calls.messages import spelled_out
from powerserve.tokenizer.chat import ChatTemplate


@dataclass(frozen=True, slots=True)
class Preparation:
    """The engine's tasks, choices of a prompt side by side, and who reads each one's text."""

    tasks: list[Task]
    parsers: list[ContentParser]


@dataclass(frozen=True, slots=True)
class _Tags:
    """The tokens around reasoning, and whether the prompt ends with the opening one."""

    opening_id: int
    closing_id: int
    starts_inside: bool

    @classmethod
    def of(cls, loaded: LoadedEngine, starts_inside: bool) -> _Tags | None:
        """Those of a model; None if they are spelled with several tokens."""
        opening, closing = (loaded.tokenizer.token_id(tag) for tag in MARKUP)
        if opening is None or closing is None:
            return None
        return cls(opening, closing, starts_inside)

    def after(self, answer: Constraint) -> Constraint:
        """The same constraint, for the answer alone."""
        return AfterReasoning(
            answer,
            opening_id=self.opening_id,
            closing_id=self.closing_id,
            starts_inside=self.starts_inside,
        )


@dataclass(frozen=True, slots=True)
class _Start:
    """How an answer to one prompt begins."""

    token_ids: list[int]
    grammar: Grammar | None
    tags: _Tags | None = None  # None: no reasoning
    markup: tuple[str, ...] = ()  # spellings of control tokens that the parser needs
    make_parser: Callable[[], ContentParser] = PlainText


def prepare(
    loaded: LoadedEngine, request: GenerationRequest, max_tokens: int | None
) -> Preparation:
    """Render, tokenize and compile. `max_tokens` is the server's limit. Raises PowerServeError."""
    all_params = request.params(default_params(loaded), max_tokens)
    preparation = Preparation([], [])
    for prompt in request.prompts:
        start = _start(loaded, prompt, request.grammar)
        preparation.tasks.extend(_tasks(loaded, start, all_params, request.score_prompts))
        preparation.parsers.extend(start.make_parser() for _ in all_params)
    return preparation


def default_params(loaded: LoadedEngine) -> SamplingParams:
    """What a request gets that asks for nothing: its workspace's hparams, else our defaults."""
    hparams = loaded.source.hparams
    return SamplingParams() if hparams is None else SamplingParams.from_hparams(hparams.sampler)


def encode_chat(loaded: LoadedEngine, prompt: ChatPrompt) -> list[int]:
    """The tokens of a conversation, for those who only want to count. Raises TemplateError."""
    return _start_chat(loaded, prompt, None).token_ids


def encode_texts(
    loaded: LoadedEngine, texts: Sequence[TextPrompt | TokenPrompt], *, truncate: bool = False
) -> list[list[int]]:
    """The tokens of texts to embed.

    One that is longer than the context loses its end if `truncate`, else ContextLengthError.
    """
    limit = loaded.engine.config.context_size
    if truncate:
        texts = [_beginning(text, loaded) for text in texts]
    encoded = [_start(loaded, text, None).token_ids for text in texts]
    if truncate:
        return [token_ids[:limit] for token_ids in encoded]
    for index, token_ids in enumerate(encoded):
        if len(token_ids) > limit:
            raise ContextLengthError(
                f"text {index} has {len(token_ids):,} tokens, but the context holds {limit:,}"
            )
    return encoded


def _tasks(
    loaded: LoadedEngine, start: _Start, all_params: list[SamplingParams], score_prompt: bool
) -> list[Task]:
    constraint = _constraint(loaded, start)
    visible = loaded.tokenizer.token_ids(start.markup)
    return [
        Task(start.token_ids, params, constraint and constraint.copy(), visible, score_prompt)
        for params in all_params
    ]


def _constraint(loaded: LoadedEngine, start: _Start) -> Constraint | None:
    if start.grammar is None:
        return None
    answer = loaded.grammars.compile(start.grammar)
    return answer if start.tags is None else start.tags.after(answer)


def _start(loaded: LoadedEngine, prompt: Prompt, grammar: Grammar | None) -> _Start:
    if isinstance(prompt, ChatPrompt):
        return _start_chat(loaded, prompt, grammar)
    if isinstance(prompt, TextPrompt):
        return _Start(loaded.tokenizer.encode(_fitting(prompt.text, loaded)), grammar)
    return _Start(list(prompt.token_ids), grammar)


def _start_chat(loaded: LoadedEngine, prompt: ChatPrompt, grammar: Grammar | None) -> _Start:
    template = loaded.template
    if template is None:
        raise TemplateError(
            f"the model {loaded.source.name} has no chat template; use completions instead"
        )
    start, tools = _Start([], grammar), prompt.tools
    if tools.offered:
        calls = tool_call_format(template.source_with_tools) if template.uses_tools else GENERIC
        start = replace(
            start,
            grammar=_grammar_with_tools(tools, calls, grammar),
            markup=calls.markup,
            make_parser=lambda: calls.parser(tools.offered),
        )
    text = _rendered(template, prompt)
    if prompt.prefill:
        text = _prefilled(text, prompt.prefill)
    if can_reason(template.source_with_tools):
        text, start = _with_reasoning(loaded, text, start)
    return replace(start, token_ids=loaded.tokenizer.encode_chat(_fitting(text, loaded)))


def _fitting(text: str, loaded: LoadedEngine) -> str:
    """The text itself, if the context may hold it. Raises ContextLengthError.

    The number of tokens is known only afterwards, but millions of characters take long.
    """
    if len(text) > _most_characters(loaded):
        raise ContextLengthError(
            f"the prompt has {len(text):,} characters, more than a context of "
            f"{loaded.engine.config.context_size:,} tokens can hold; shorten the prompt or choose "
            "a larger context (-c)"
        )
    return text


def _beginning(text: TextPrompt | TokenPrompt, loaded: LoadedEngine) -> TextPrompt | TokenPrompt:
    """As much of a text as the context could hold at best."""
    if isinstance(text, TokenPrompt):
        return text
    return TextPrompt(text.text[: _most_characters(loaded)])


def _most_characters(loaded: LoadedEngine) -> int:
    """How long a text can be at best that the context holds."""
    return loaded.engine.config.context_size * loaded.tokenizer.longest_token


def _grammar_with_tools(
    tools: Tools, calls: ToolCallFormat, grammar: Grammar | None
) -> Grammar | None:
    if tools.is_forced:  # then an answer comes only after the calls, with another request
        return calls.forced_calls(tools.forced, parallel=tools.parallel and tools.name is None)
    if grammar is None:
        return None
    return calls.forced_calls(tools.offered, parallel=tools.parallel, otherwise=grammar)


def _rendered(template: ChatTemplate, prompt: ChatPrompt) -> str:
    """The conversation as text; a template that knows no tools gets them in words."""
    tools, messages = prompt.tools.offered, prompt.messages
    if not template.uses_tools:
        return template.render(spelled_out(messages, tools), **prompt.variables)
    return template.render(messages, tools=[tool.as_openai() for tool in tools], **prompt.variables)


def _prefilled(text: str, prefill: str) -> str:
    """The prompt with the answer's beginning, which comes after reasoning that is open."""
    return f"{text}{CLOSING}\n\n{prefill}" if opens_reasoning(text) else text + prefill


def _with_reasoning(loaded: LoadedEngine, text: str, start: _Start) -> tuple[str, _Start]:
    """The prompt and the start for a model that may think before it answers."""
    is_open, make_answer = opens_reasoning(text), start.make_parser
    tags = _Tags.of(loaded, is_open)
    if start.grammar is not None and tags is None:
        # Where the grammar would begin cannot be told: it begins at once.
        return (f"{text}{CLOSING}\n\n" if is_open else text), start
    return text, replace(
        start,
        tags=tags,
        make_parser=lambda: ReasoningParser(make_answer(), starts_inside=is_open),
        markup=start.markup + MARKUP,
    )
