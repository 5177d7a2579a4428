"""Whether a draft model speaks the target's language: the same tokens under the same ids."""

from __future__ import annotations

from powerserve.core.errors import UsageError
from powerserve.tokenizer.vocabulary import Metadata, TokenType

_KIND = "tokenizer.ggml.model"
_TOKENS = "tokenizer.ggml.tokens"
_TYPES = "tokenizer.ggml.token_type"
_MERGES = "tokenizer.ggml.merges"


def check_same_vocabulary(target: Metadata, draft: Metadata, draft_name: str) -> None:
    """Raise UsageError unless both models have the same tokens and merges.

    One of them may have more tokens if nothing uses them: tables are often padded.
    """
    problem = _difference(target, draft)
    if problem:
        raise UsageError(
            f"{draft_name} cannot draft for this model: {problem}; "
            "choose a draft model of the same family"
        )


def _difference(target: Metadata, draft: Metadata) -> str | None:
    if target.get(_KIND) != draft.get(_KIND):
        return f"its tokenizer is of kind {draft.get(_KIND)}, not {target.get(_KIND)}"
    ours, theirs = target[_TOKENS], draft[_TOKENS]
    shared = min(len(ours), len(theirs))
    if list(ours[:shared]) != list(theirs[:shared]):
        index = next(i for i in range(shared) if ours[i] != theirs[i])
        return f"token {index} is {theirs[index]!r} there and {ours[index]!r} here"
    for metadata in (target, draft):
        if any(kind != TokenType.UNUSED for kind in list(metadata.get(_TYPES, ()))[shared:]):
            return f"its vocabulary has {len(theirs):,} tokens, not {len(ours):,}"
    if list(target.get(_MERGES, ())) != list(draft.get(_MERGES, ())):
        return "its tokenizer has other merges"
    return None
