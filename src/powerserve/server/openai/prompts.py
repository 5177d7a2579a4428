"""Texts without a chat template: what completions continue and embeddings are of."""

from __future__ import annotations

from powerserve.server.bounds import check_texts
from powerserve.server.errors import invalid
from powerserve.server.request import TextPrompt, TokenPrompt

GivenTexts = str | list[str | int | list[int]]


def text_prompts(given: GivenTexts, param: str) -> list[TextPrompt | TokenPrompt]:
    """A text, token ids, or a list of either; `param` is the field's name. Raises ApiError."""
    if isinstance(given, str):
        return [TextPrompt(given)]
    if not given:
        raise invalid(f"{param} must not be an empty list", param)
    ids = [each for each in given if isinstance(each, int)]
    if ids:
        if len(ids) < len(given):
            raise invalid(f"{param} must not mix token ids with texts or lists", param)
        return [TokenPrompt(ids)]
    check_texts(len(given), param)
    return [TextPrompt(each) if isinstance(each, str) else _tokens(each) for each in given]


def _tokens(given: int | list[int]) -> TokenPrompt:
    assert isinstance(given, list)  # numbers were sorted out before
    return TokenPrompt(given)
