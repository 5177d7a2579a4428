"""What clients send to /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from powerserve.sampler.grammar import Grammar
from powerserve.server.anthropic.conversation import InputMessage, TextBlock, template_messages
from powerserve.server.anthropic.tools import Tool, ToolChoice, chosen_tools
from powerserve.server.errors import invalid
from powerserve.server.request import ChatPrompt, GenerationRequest, split_prefill

_OURS = ("max_tokens", "temperature", "top_p", "top_k")
_UNSUPPORTED = ("container", "mcp_servers")


class Thinking(msgspec.Struct):
    """`thinking`; a budget of tokens is not kept, as no template knows of one."""

    type: Literal["enabled", "adaptive", "disabled", "between_tools"]
    display: Literal["summarized", "omitted"] | None = None

    @property
    def is_on(self) -> bool:
        """Whether the model shall think."""
        return self.type in ("enabled", "adaptive")


class OutputFormat(msgspec.Struct):
    """`output_config.format`."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct):
    """`output_config`."""

    format: OutputFormat | None = None


class PromptFields(msgspec.Struct, kw_only=True):
    """What the model gets to read: all that count_tokens takes."""

    messages: list[InputMessage]
    model: str = ""
    system: str | list[TextBlock] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None

    def prompt(self) -> ChatPrompt:
        """The conversation in neutral form. Raises ApiError or UsageError."""
        messages, prefill = split_prefill(template_messages(self.system, self.messages))
        tools = chosen_tools(self.tools or (), self.tool_choice)
        return ChatPrompt(messages, tools, self._variables(), prefill)

    def _variables(self) -> dict[str, Any]:
        """What templates of models that may think, or not, ask for."""
        return {} if self.thinking is None else {"enable_thinking": self.thinking.is_on}


class MessagesRequest(PromptFields, kw_only=True):
    """The body of /v1/messages."""

    max_tokens: int
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    output_config: OutputConfig | None = None
    container: Any = None
    mcp_servers: Any = None

    @property
    def shows_thinking(self) -> bool:
        """Whether the answer has thinking blocks, if the model thinks."""
        return self.thinking is None or (self.thinking.is_on and self.thinking.display != "omitted")

    def neutral(self) -> GenerationRequest:
        """The request in neutral form. Raises ApiError or UsageError for what cannot be done."""
        for name in _UNSUPPORTED:
            if getattr(self, name):
                raise invalid(f"this server does not support `{name}`", name)
        return GenerationRequest(
            model=self.model,
            prompts=[self.prompt()],
            sampling=self._sampling(),
            grammar=self._grammar(),
        )

    def _sampling(self) -> dict[str, Any]:
        given = {name: value for name in _OURS if (value := getattr(self, name)) is not None}
        if self.stop_sequences:
            given["stop"] = tuple(self.stop_sequences)
        return given

    def _grammar(self) -> Grammar | None:
        wanted = self.output_config and self.output_config.format
        return Grammar.from_schema(wanted.schema) if wanted else None
