"""What all clients of a soak test know."""

from __future__ import annotations

import random
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from powerserve.evaluate.server_soak.families import FAMILIES, Family, Wish, WrongAnswer
from powerserve.evaluate.server_soak.http_client import Connection, Reply, connected
from powerserve.evaluate.server_soak.plan import SoakPlan
from powerserve.evaluate.server_soak.process import ServerProcess
from powerserve.evaluate.server_soak.questions import Form, Question, new_mark
from powerserve.evaluate.server_soak.truths import ModelTruths

_UNAVAILABLE = (503, 529)  # 529 is Anthropic's
_ANOTHER_MODEL = 0.06  # of the requests
_MARKED_TOKENS = 64  # more than any form needs around a mark


@dataclass(slots=True)
class Setting:
    """The server, what is known of its answers, and which model most clients ask now."""

    server: ServerProcess
    plan: SoakPlan
    questions: list[Question]
    truths: dict[str, ModelTruths]
    favourite: str

    def connected(self, *, is_deaf: bool = False) -> AbstractAsyncContextManager[Connection]:
        """A new connection. Raises ConnectionLost."""
        return connected(self.server.host, self.server.port, is_deaf=is_deaf)

    def model(self, chance: random.Random) -> str:
        """The favourite, or now and then any."""
        is_other = chance.random() < _ANOTHER_MODEL
        return chance.choice(self.plan.models) if is_other else self.favourite

    def wish(self, chance: random.Random) -> tuple[Family, Wish]:
        """Something to ask."""
        family = chance.choice(FAMILIES)
        form = chance.choice(family.forms)
        is_plain = form is Form.PLAIN
        wish = Wish(
            chance.choice(self.questions),
            self.model(chance),
            form,
            "" if is_plain else new_mark(chance),
            is_stream=chance.random() < 0.5,
            max_tokens=chance.choice((1, 2, 4, 8, 30)) if is_plain else _MARKED_TOKENS,
            temperature=chance.choice((0.0, 0.0, 1.0)),
        )
        return family, wish


def is_refused(reply: Reply) -> bool:
    """Whether the server has no room, and says when to come again.

    Raises WrongAnswer for any other error of the server's own.
    """
    if reply.status in _UNAVAILABLE and "retry-after" in reply.headers:
        return True
    if reply.status >= 500:
        raise WrongAnswer(f"status {reply.status}: {reply.body[:300]!r}")
    return False
