"""Tables that read well as text and as markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(rows: Iterable[Sequence[str]]) -> str:
    """The first row is the heading; numbers, in all columns but the first, stand on the right."""
    header, *body = ["| " + " | ".join(row) + " |" for row in rows]
    columns = header.count("|") - 1
    return "\n".join([header, "|---" + "|---:" * (columns - 1) + "|", *body])
