"""A conversation: a system message, then questions and answers in turn."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from powerserve.core.errors import ConfigError
from powerserve.storage.json_file import read_json, write_json


@dataclass(frozen=True, slots=True)
class Message:
    """One message, as in OpenAI's API."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(slots=True)
class Conversation:
    """What was said. `turns` alternate between user and assistant, and a user begins."""

    system: str | None = None
    turns: list[Message] = field(default_factory=list)

    @property
    def awaits_answer(self) -> bool:
        """Whether the last message is a question."""
        return bool(self.turns) and self.turns[-1].role == "user"

    def messages(self) -> list[dict[str, str]]:
        """Everything as plain data, the way a chat template takes it."""
        system = [] if self.system is None else [Message("system", self.system)]
        return [asdict(message) for message in (*system, *self.turns)]

    def ask(self, text: str) -> None:
        """Add a question; the one before must have been answered, or dropped."""
        self.turns.append(Message("user", text))

    def answer(self, text: str) -> None:
        """Add the answer to the last question."""
        self.turns.append(Message("assistant", text))

    def drop_question(self) -> None:
        """Take the last question back if it has no answer."""
        if self.awaits_answer:
            self.turns.pop()

    def drop_answer(self) -> None:
        """Take the last answer back, so that its question waits for another."""
        if self.turns and not self.awaits_answer:
            self.turns.pop()

    def forget_oldest(self) -> bool:
        """Drop the oldest question with its answer; False if only the last question is left."""
        if len(self.turns) <= 2:
            return False
        del self.turns[:2]
        return True

    def save(self, path: Path) -> None:
        """Write the messages as a JSON array. Raises ConfigError."""
        try:
            write_json(path, self.messages())
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}") from None

    @classmethod
    def load(cls, path: Path) -> Conversation:
        """Read what `save` wrote, or any such array. Raises ConfigError."""
        messages = read_json(path, list[Message])
        has_system = bool(messages) and messages[0].role == "system"
        turns = messages[1:] if has_system else messages
        for index, message in enumerate(turns):
            expected = "assistant" if index % 2 else "user"
            if message.role != expected:
                raise ConfigError(
                    f"{path}: message {index + has_system + 1} is the {message.role}'s, but after "
                    "an optional system message user and assistant must take turns"
                )
        return cls(messages[0].content if has_system else None, turns)
