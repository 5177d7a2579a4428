"""What a sequence's next token may be, given the tokens so far."""

from __future__ import annotations

from typing import Protocol, Self

from powerserve.sampler.token_mask import TokenMask


class Constraint(Protocol):
    """The state of one sequence in its grammar; `SamplerChain` asks and advances it."""

    @property
    def is_complete(self) -> bool:
        """Whether the text is finished, so that only a stop token may follow."""
        ...

    def allowed(self) -> TokenMask | None:
        """The tokens that may come next, None for all; raises UsageError if none can be told."""
        ...

    def accept(self, token_id: int) -> None:
        """Note that the text continues with this token, which should be an allowed one."""
        ...

    def copy(self) -> Self:
        """Return the same state, independent of this one."""
        ...
