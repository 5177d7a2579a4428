"""Following a JSON value to its end, while it comes in pieces."""

from __future__ import annotations

import re

_NOTABLE = re.compile(r'["{}\[\]]')
_IN_STRING = re.compile(r'["\\]')


class JsonSpan:
    """Counts the brackets of an object or array; brackets in strings do not count.

    Nothing else is checked: whether the value is JSON is found out when it is read.
    """

    def __init__(self) -> None:
        self.depth = 0
        self._in_string = False
        self._skip = 0  # characters that follow a backslash

    def advance(self, text: str, until_depth: int = 0) -> int | None:
        """Read `text` up to where a closing bracket leads to `until_depth`.

        Returns the number of characters read then, or None if all were and it has not happened.
        """
        position, self._skip = self._skip, 0
        while match := (_IN_STRING if self._in_string else _NOTABLE).search(text, position):
            position = match.end()
            self._note(match[0])
            if match[0] == "\\":
                position += 1
            elif match[0] in "}]" and not self._in_string and self.depth <= until_depth:
                return position
        self._skip = max(0, position - len(text))
        return None

    def _note(self, character: str) -> None:
        if character == '"':
            self._in_string = not self._in_string
        elif character in "{[":
            self.depth += 1
        elif character in "}]":
            self.depth -= 1
