"""Ending a stream of text before a stop string."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Watches streamed text for stop strings, and shows none of one.

    The stop string that is completed first ends the text, whatever the pieces it arrives in;
    of several completed by the same character, the one that begins first. Nothing after the
    end of a stop string is needed to recognise it, so generation never runs on in doubt.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        """`stop` holds no empty string; it may itself be empty: nothing is then held back."""
        self.matched: str | None = None  # the stop string that was met
        self._stop = tuple(stop)
        self._held = ""  # always the beginning of some stop string

    def feed(self, text: str) -> tuple[str, bool]:
        """Take a piece; return the text that can be shown now and whether a stop was met.

        Text is held back only while it could be the beginning of a stop string.
        """
        if self.matched is not None:
            return "", True
        text = self._held + text
        match = self._first_match(text)
        if match is None:
            return self._release(text), False
        self._held = ""
        begin, self.matched = match
        return text[:begin], True

    def finish(self) -> str:
        """Return what was held back, now that no more text will come."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, str] | None:
        """Return where the stop string that ends first begins, and which it is."""
        found = ((text.find(stop), stop) for stop in self._stop)
        spans = [(begin + len(stop), begin, stop) for begin, stop in found if begin >= 0]
        return min(spans)[1:] if spans else None

    def _release(self, text: str) -> str:
        num_held = max((_overlap(text, stop) for stop in self._stop), default=0)
        num_shown = len(text) - num_held
        self._held = text[num_shown:]
        return text[:num_shown]


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that is a proper beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
