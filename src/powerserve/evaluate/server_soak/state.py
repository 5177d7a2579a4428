"""What a server at rest holds: everything that could leak."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from time import monotonic

from powerserve.evaluate.server_soak.http_client import Connection, Request
from powerserve.evaluate.server_soak.process import Footprint, ServerProcess

_REST_TIMEOUT_S = 60.0
_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class ServerState:
    """At one moment, with one connection: ours."""

    footprint: Footprint
    num_requests: int  # running or waiting
    num_cells_taken: int
    num_cells_kept: int  # for prefixes
    num_tasks: int

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing runs, and no cell is taken but for prefixes."""
        return not self.num_requests and self.num_cells_taken == self.num_cells_kept


async def read_state(server: ServerProcess, connection: Connection) -> ServerState:
    """Ask for it. Raises ConnectionLost."""
    text = (await connection.ask(Request("GET", "/metrics", headers=()))).body.decode()
    slots = (await connection.ask(Request("GET", "/slots", headers=()))).json()
    values = dict(line.split() for line in text.splitlines() if line.count(" ") == 1)

    def metric(name: str) -> int:
        return int(float(values[name]))

    waiting = metric("llamacpp:requests_processing") + metric("llamacpp:requests_deferred")
    return ServerState(
        server.footprint(),
        max(len(slots), waiting),
        metric("powerserve:kv_cells_taken"),
        metric("powerserve:kv_cells_kept"),
        metric("powerserve:tasks"),
    )


async def wait_for_rest(
    server: ServerProcess, connection: Connection, max_tasks: float
) -> ServerState:
    """The state once all has ended and no more than `max_tasks` are left, or after a minute."""
    began = monotonic()
    while True:
        state = await read_state(server, connection)
        is_over = state.is_at_rest and state.num_tasks <= max_tasks
        if is_over or monotonic() - began > _REST_TIMEOUT_S:
            return state
        await asyncio.sleep(_POLL_S)
