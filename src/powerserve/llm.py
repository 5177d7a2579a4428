"""The Python API: load a model, generate, chat.

from powerserve import LLM, SamplingParams

with LLM() as llm:  # the built-in model; or a path, a folder, a store name
    print(llm.generate("The capital of France is", max_tokens=8).text)
    for piece in llm.stream_chat([{"role": "user", "content": "Hello!"}]):
        print(piece, end="", flush=True)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from powerserve.core.errors import PowerServeError, TemplateError
from powerserve.core.tracing import NO_TRACER, Tracer
from powerserve.engine.drawing import TokenEvent
from powerserve.engine.generation import Completion, TextGeneration, TextPiece
from powerserve.engine.loader import LoadedEngine, LoadOptions, load_engine
from powerserve.sampler.grammar import Grammar
from powerserve.sampler.params import SamplingParams
from powerserve.storage.builtin import ensure_builtin, find_builtin
from powerserve.storage.progress import SILENT, Progress
from powerserve.storage.resolve import ModelSource, resolve_model
from powerserve.storage.store import ModelStore

DEFAULT_MODEL = "smollm2-135m"
DEFAULT_MAX_TOKENS = 512

Message = Mapping[str, Any]
Prompt = str | Sequence[int]


class LLM:
    """A loaded model. Use it as a context manager, or call `close`.

    Not thread-safe: calls, and iteration over streams, belong to one thread.
    """

    def __init__(
        self,
        model: str | Path | ModelSource = DEFAULT_MODEL,
        options: LoadOptions | None = None,
        *,
        draft: str | Path | ModelSource | None = None,
        progress: Progress = SILENT,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        """Load `model`: a GGUF file, a model folder, a workspace, or a name from the store.

        `draft` is a smaller model of the same vocabulary that guesses tokens ahead where that
        pays. The built-in model is downloaded on first use. `tracer` sees the engine's steps.
        Raises a PowerServeError subclass that says what is wrong with the names, the files, the
        options or the machine.
        """
        if not isinstance(model, ModelSource):
            model = locate_model(model, progress=progress)
        if draft is not None:
            if not isinstance(draft, ModelSource):
                draft = locate_model(draft, progress=progress)
            model = replace(model, draft=draft, draft_is_optional=False)
        self.loaded: LoadedEngine = load_engine(model, options, tracer=tracer)
        self._queues: dict[int, deque[TextPiece | PowerServeError]] = {}
        self._generations: dict[int, TextGeneration] = {}

    def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        grammar: Grammar | None = None,
        **changes: Any,
    ) -> Completion:
        """Continue `prompt` (text, or token ids as they are) and return the whole answer.

        The answer follows `grammar`, if given. `changes` replace fields of `params`, as in
        `max_tokens=32`.
        """
        return self._complete(self._start(self._encode(prompt), params, changes, grammar))

    def generate_all(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | None = None,
        *,
        grammar: Grammar | None = None,
        **changes: Any,
    ) -> list[Completion]:
        """Continue several prompts together, in one batch where they fit."""
        started = [
            self._start(self._encode(prompt), params, changes, grammar) for prompt in prompts
        ]
        return [self._complete(generation) for generation in started]

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        grammar: Grammar | None = None,
        **changes: Any,
    ) -> Iterator[str]:
        """Continue `prompt`, yielding text as it is made; closing the iterator ends the work."""
        return self._texts(self._start(self._encode(prompt), params, changes, grammar))

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        grammar: Grammar | None = None,
        **changes: Any,
    ) -> Completion:
        """Answer a conversation of `{"role": …, "content": …}` messages."""
        prompt = self.encode_chat(messages, tools=tools)
        return self._complete(self._start(prompt, params, changes, grammar))

    def stream_chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        grammar: Grammar | None = None,
        **changes: Any,
    ) -> Iterator[str]:
        """Answer a conversation, yielding text as it is made."""
        prompt = self.encode_chat(messages, tools=tools)
        return self._texts(self._start(prompt, params, changes, grammar))

    def start(
        self, prompt: Prompt, params: SamplingParams, grammar: Grammar | None = None
    ) -> TextGeneration:
        """Begin a generation; `pieces` then yields what it makes."""
        return self._start(self._encode(prompt), params, {}, grammar)

    def pieces(self, generation: TextGeneration) -> Iterator[TextPiece]:
        """Yield a generation's pieces as they are made; closing the iterator cancels it."""
        sequence = generation.sequence
        queue = self._queues[id(generation)]
        try:
            while True:
                while not queue and sequence.finish_reason is None:
                    self._step()
                if not queue:
                    return
                piece = queue.popleft()
                if isinstance(piece, PowerServeError):
                    raise piece
                yield piece
                if piece.finish_reason is not None:
                    return
        finally:
            self.loaded.engine.cancel(sequence)
            self._generations.pop(id(sequence), None)
            self._queues.pop(id(generation), None)

    def encode_chat(
        self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """The prompt's tokens for a conversation, by the model's chat template."""
        template = self.loaded.template
        if template is None:
            raise TemplateError(
                f"{self.loaded.source.name} has no chat template, so it cannot chat; "
                "give it a plain prompt instead"
            )
        return template.encode(messages, tools=tools)

    def close(self) -> None:
        """Release the model."""
        self.loaded.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _encode(self, prompt: Prompt) -> list[int]:
        return self.loaded.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)

    def _start(
        self,
        prompt: list[int],
        params: SamplingParams | None,
        changes: Mapping[str, Any],
        grammar: Grammar | None,
    ) -> TextGeneration:
        params = params or SamplingParams(max_tokens=DEFAULT_MAX_TOKENS)
        params = params.replace(**changes) if changes else params
        constraint = None if grammar is None else self.loaded.grammars.compile(grammar)
        sequence = self.loaded.engine.add(prompt, params, constraint)
        generation = TextGeneration(self.loaded.engine, sequence, self.loaded.tokenizer)
        self._generations[id(sequence)] = generation
        self._queues[id(generation)] = deque()
        return generation

    def _texts(self, generation: TextGeneration) -> Iterator[str]:
        for piece in self.pieces(generation):
            if piece.text:
                yield piece.text

    def _complete(self, generation: TextGeneration) -> Completion:
        for _ in self.pieces(generation):
            pass
        return generation.completion()

    def _step(self) -> None:
        """One engine step; each event goes to the generation it belongs to."""
        for event in self.loaded.engine.step():
            generation = self._generations.get(id(event.sequence))
            if generation is not None:
                self._queues[id(generation)].append(_fed(generation, event))


def _fed(generation: TextGeneration, event: TokenEvent) -> TextPiece | PowerServeError:
    """The event's piece, or the error it carries: that belongs to whoever reads this generation."""
    try:
        return generation.feed(event)
    except PowerServeError as error:
        return error


def locate_model(
    reference: str | Path, *, work_folder: Path | None = None, progress: Progress = SILENT
) -> ModelSource:
    """The files of a model; the built-in one is fetched if it is not there yet."""
    store = ModelStore()
    if isinstance(reference, str) and find_builtin(reference) is not None:
        path = ensure_builtin(reference, store, progress=progress)
        return resolve_model(path)
    return resolve_model(reference, work_folder=work_folder, store=store)
