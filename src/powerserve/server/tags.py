"""Looking for tags in a text that comes in pieces."""

from __future__ import annotations

from collections.abc import Collection


def partial_length(text: str, tags: Collection[str]) -> int:
    """How much of the end of `text` may be the beginning of a tag."""
    longest = max((len(tag) - 1 for tag in tags), default=0)
    tail = text[-longest:] if longest else ""
    return next(
        (
            len(tail) - start
            for start in range(len(tail))
            if any(tag.startswith(tail[start:]) for tag in tags)
        ),
        0,
    )


def held_length(text: str, tags: Collection[str]) -> int:
    """As `partial_length`, with the white space before it, which goes with the tag."""
    certain = text[: len(text) - partial_length(text, tags)]
    return len(text) - len(certain.rstrip())


def first_tag(text: str, tags: Collection[str]) -> tuple[int, str] | None:
    """Where the first tag of `text` begins, and which it is (the longest there)."""
    found = [(text.find(tag), -len(tag), tag) for tag in tags if tag in text]
    return (min(found)[0], min(found)[2]) if found else None
