"""From a conversation to a prompt, by the model's own chat template.

Templates are Jinja programs inside model files, hence untrusted; `template_sandbox` says how they
are confined. Jinja is imported when the first template is compiled, not at start-up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from powerserve.core.errors import PowerServeError, TemplateError
from powerserve.tokenizer.called_tools import with_calls_as_expected
from powerserve.tokenizer.known_templates import (
    recognise_template,
    recognise_tokens,
    template_by_name,
)
from powerserve.tokenizer.tokenizer import Tokenizer
from powerserve.tokenizer.vocabulary import Metadata

if TYPE_CHECKING:
    import jinja2

    from powerserve.tokenizer.template_sandbox import TemplateEnvironment

Message = Mapping[str, Any]

_KEY = "tokenizer.chat_template"
_MAX_SOURCE = 128 << 10  # characters; the longest in use have a quarter of that


class ChatTemplate:
    """A model's chat template; compiled at first use, then shared by all threads."""

    def __init__(
        self,
        source: str,
        tokenizer: Tokenizer,
        *,
        tool_source: str | None = None,
        now: Callable[[], datetime] = datetime.now,
        time_limit_s: float = 5.0,
    ) -> None:
        """Take a Jinja source, and another for conversations with tools where the model has one.

        `now` is the clock of templates that write the date. `time_limit_s` is what one rendering
        may take: a thousand times what a long conversation needs, as it is meant for hostile ones.
        """
        self.source = source
        self._tokenizer = tokenizer
        self._tool_source = tool_source
        self._now = now
        self._time_limit_s = time_limit_s

    @classmethod
    def from_metadata(cls, metadata: Metadata, tokenizer: Tokenizer) -> ChatTemplate | None:
        """The template of a GGUF file; without one, a known format that its tokens belong to.

        None if there is neither: a base model, which cannot chat. Raises TemplateError if the
        metadata does not hold text.
        """
        source = _text(metadata, _KEY)
        if source is not None:
            return cls(source, tokenizer, tool_source=_text(metadata, f"{_KEY}.tool_use"))
        name = recognise_tokens(lambda text: tokenizer.token_id(text) is not None)
        return None if name is None else cls.by_name(name, tokenizer)

    @classmethod
    def by_name(cls, name: str, tokenizer: Tokenizer) -> ChatTemplate:
        """A known format, such as “llama3”; raises TemplateError for an unknown name."""
        return cls(template_by_name(name), tokenizer)

    @property
    def uses_tools(self) -> bool:
        """Whether the template does anything with `tools`."""
        return self._tool_source is not None or "tools" in self.source

    @property
    def source_with_tools(self) -> str:
        """The source that renders conversations with tools."""
        return self._tool_source or self.source

    def render(
        self,
        messages: Sequence[Message],
        /,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """Return the prompt for a conversation.

        `messages` and `tools` are as in OpenAI's API; arguments of tool calls may be JSON text.
        `variables` are passed on, for instance `enable_thinking`. The result may begin with BOS:
        tokenize it with `Tokenizer.encode_chat`, or use `encode`. Raises TemplateError if the
        template is broken or hostile, or refuses the conversation.
        """
        from powerserve.tokenizer.template_budget import plain_data

        values = {
            "bos_token": self._special_text(self._tokenizer.special.bos),
            "eos_token": self._special_text(self._tokenizer.special.eos),
            "messages": [
                with_calls_as_expected(message, self.source_with_tools) for message in messages
            ],
            "tools": tools or None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        return self._render(plain_data(values | variables), with_tools=bool(tools))

    def encode(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> list[int]:
        """Render a conversation and return its token ids, with BOS once where the model wants it.

        Parameters and errors are those of `render`.
        """
        prompt = self.render(
            messages, tools=tools, add_generation_prompt=add_generation_prompt, **variables
        )
        return self._tokenizer.encode_chat(prompt)

    def _render(self, values: dict[str, Any], *, with_tools: bool) -> str:
        from powerserve.tokenizer.template_budget import Budget
        from powerserve.tokenizer.template_filters import TemplateRefusal

        template = self._compiled_for_tools if with_tools else self._compiled
        try:
            budget = Budget(values, self._time_limit_s)
            return self._environment.render_within(template, budget, values)
        except PowerServeError:
            raise
        except TemplateRefusal as refusal:
            raise TemplateError(str(refusal)) from None
        except Exception as error:  # whatever the file's program may run into
            raise TemplateError(f"the model's chat template failed: {_reason(error)}") from error

    @cached_property
    def _environment(self) -> TemplateEnvironment:
        from powerserve.tokenizer.template_sandbox import TemplateEnvironment

        return TemplateEnvironment(self._now)

    @cached_property
    def _compiled(self) -> jinja2.Template:
        return self._compile(self.source)

    @cached_property
    def _compiled_for_tools(self) -> jinja2.Template:
        return self._compiled if self._tool_source is None else self._compile(self._tool_source)

    def _compile(self, source: str) -> jinja2.Template:
        """Compile `source`, or the known format it looks like if it cannot be compiled."""
        try:
            if len(source) > _MAX_SOURCE:
                raise ValueError(f"it is longer than {_MAX_SOURCE:,} characters")
            return self._environment.compile_guarded(source)
        except Exception as error:
            name = recognise_template(source)
            if name is not None:
                return self._environment.compile_guarded(template_by_name(name))
            raise TemplateError(
                f"the model's chat template cannot be used: {_reason(error)}"
            ) from error

    def _special_text(self, token_id: int | None) -> str:
        return "" if token_id is None else self._tokenizer.token_text(token_id)


def _text(metadata: Metadata, key: str) -> str | None:
    value = metadata.get(key)
    if value is not None and not isinstance(value, str):
        raise TemplateError(f"{key} in the model file is not text")
    return value or None


def _reason(error: Exception) -> str:
    return str(error).rstrip(".") or type(error).__name__
