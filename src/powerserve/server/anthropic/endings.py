"""Why an answer ended, and what it cost, in Anthropic's words."""

from __future__ import annotations

from typing import Any

from powerserve.engine.sequence import FinishReason
from powerserve.server.events import Ended, Usage


def ending(ended: Ended, *, called_tools: bool) -> dict[str, Any]:
    """`stop_reason`, and the stop sequence if it is the reason."""
    return {
        "stop_reason": _reason(ended, called_tools),
        "stop_sequence": ended.stop_text,
        "stop_details": None,  # of refusals
        "container": None,
    }


def usage_body(usage: Usage) -> dict[str, Any]:
    """The `usage` object; its three counts of input add up to the prompt."""
    return usage_counts(usage.num_prompt_tokens, usage.num_cached_tokens, usage.num_generated)


def usage_counts(
    num_prompt_tokens: int, num_cached_tokens: int = 0, num_generated: int = 0
) -> dict[str, Any]:
    """The `usage` object with these counts; null is for what no model on this machine has."""
    return {
        "input_tokens": num_prompt_tokens - num_cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": num_cached_tokens,
        "output_tokens": num_generated,
        "cache_creation": None,
        "inference_geo": None,
        "output_tokens_details": None,
        "server_tool_use": None,
        "service_tier": None,
    }


def _reason(ended: Ended, called_tools: bool) -> str:
    if ended.stop_text is not None:
        return "stop_sequence"
    match ended.reason:
        case FinishReason.LENGTH:
            return "max_tokens"
        case FinishReason.CONTEXT:
            return "model_context_window_exceeded"
    return "tool_use" if called_tools else "end_turn"
