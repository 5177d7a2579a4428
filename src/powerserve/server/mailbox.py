"""Events of one generation, waiting for the task that writes them to a client."""

from __future__ import annotations

import asyncio

from powerserve.server.events import Embedded, Ended, Event, Failed, Piece


class Mailbox:
    """Takes events without ever blocking, and without growing beyond the size of the answer.

    A client may read slowly, or not at all. Pieces that nobody has taken yet are joined into one,
    so what waits here is text the model has written, and nothing per token but log-probabilities
    that were asked for.
    """

    def __init__(self, arrived: asyncio.Event) -> None:
        """`arrived` is set when something is there; several mailboxes may share it."""
        self._arrived = arrived
        self._events: list[Event] = []
        self.is_complete = False  # the last event is in, or was taken

    def put(self, event: Event) -> None:
        """Add an event; joins text."""
        if self.is_complete:
            return
        last = self._events[-1] if self._events else None
        if isinstance(event, Piece) and isinstance(last, Piece):
            self._events[-1] = _joined(last, event)
        else:
            self._events.append(event)
        self.is_complete = isinstance(event, Ended | Failed | Embedded)
        self._arrived.set()

    def take(self) -> list[Event]:
        """Empty the mailbox."""
        events, self._events = self._events, []
        return events


def _joined(first: Piece, second: Piece) -> Piece:
    return Piece(
        first.text + second.text,
        first.num_tokens + second.num_tokens,
        first.logprobs + second.logprobs,
    )
