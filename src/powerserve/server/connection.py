"""One connection, as uvicorn handles it, with limits on clients that take their time."""

from __future__ import annotations

from asyncio import BaseTransport, TimerHandle
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_TIMEOUT_S = 30.0
_LINGER_S = 2.0


class Connection(H11Protocol):
    """Closes if a request's head, or a body that nobody reads any more, takes too long.

    uvicorn has a timer for connections on which nothing comes at all, and none for one byte now
    and then.
    """

    def __init__(self, *, head_timeout_s: float = HEAD_TIMEOUT_S, **uvicorns: Any) -> None:
        """`uvicorns` are what uvicorn gives to its protocols."""
        super().__init__(**uvicorns)
        self._head_timeout_s = head_timeout_s
        self._deadline: TimerHandle | None = None
        self._is_over = False  # all is said; what still comes is thrown away

    def connection_made(self, transport: BaseTransport) -> None:
        """The first head is due."""
        super().connection_made(transport)  # type: ignore[arg-type]  # as uvicorn narrows it
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take bytes of a head or a body."""
        if not self._is_over:
            super().data_received(data)
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end, whoever wanted it."""
        self._cancel_deadline()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP.

        The client may be in the middle of sending. Were the connection closed at once, it would be
        told of that instead of getting the answer (RFC 9112, section 9.6).
        """
        if self.cycle is not None:
            self.cycle.disconnected = True  # the application shall say no more
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._write_400(msg.encode())
        self._is_over = True
        self._cancel_deadline()
        if not self.transport.can_write_eof():  # TLS cannot be closed by halves
            self.transport.close()
            return
        self.transport.write_eof()
        self.flow.resume_reading()
        self._deadline = self.loop.call_later(_LINGER_S, self.transport.close)

    def _write_400(self, text: bytes) -> None:
        headers = [("content-type", "text/plain; charset=utf-8"), ("connection", "close")]
        events = (
            h11.Response(status_code=400, headers=headers),
            h11.Data(text),
            h11.EndOfMessage(),
        )
        for event in events:
            self.transport.write(self.conn.send(event) or b"")

    def _watch(self) -> None:
        """Let the time run while no request is being answered."""
        if self._is_over:
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._cancel_deadline()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self._head_timeout_s, self.transport.close)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
