"""What the user may choose about speculation."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import StrEnum

from powerserve.core.errors import UsageError


class SpeculationMode(StrEnum):
    """Who proposes tokens. All but `auto` and `off` verify whatever there is to verify."""

    AUTO = "auto"  # everyone who can, as far as it pays; often nobody
    OFF = "off"
    SUFFIX = "suffix"  # repetitions in prompt and answer
    DRAFT = "draft"  # a draft model, level by level, and repetitions
    TREE = "tree"  # a draft model, as the original did it: a tree of fixed size, best node first

    @property
    def needs_draft(self) -> bool:
        """Whether there is nothing to do without a draft model."""
        return self in (SpeculationMode.DRAFT, SpeculationMode.TREE)


@dataclass(frozen=True, slots=True)
class TreeParams:
    """The original's parameters of a token tree, for `SpeculationMode.TREE`."""

    draft_batch_size: int = 12  # nodes, the root included
    top_k: int = 15  # candidates of a node
    temperature: float = 1.5  # of the draft's distribution
    p_base: float = 0.9  # a candidate this much less probable than the best is not expanded
    max_fan_out: int = 3  # expandable children of a node
    min_prob: float = 0.2  # nodes that are less probable are not expanded
    early_stop: bool = True  # keep room in the tree for candidates that are already there

    def __post_init__(self) -> None:
        for name in ("draft_batch_size", "top_k", "max_fan_out"):
            if getattr(self, name) < 1:
                raise UsageError(f"the token tree's {name} must be at least 1")
        if not self.temperature > 0:
            raise UsageError(f"the draft sampler's temperature must be > 0, not {self.temperature}")
        for name in ("p_base", "min_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"the token tree's {name} must be within 0 and 1")


@dataclass(frozen=True, slots=True)
class SpeculationOptions:
    """How tokens are guessed ahead. The output does not depend on it, only the speed does."""

    mode: SpeculationMode = SpeculationMode.AUTO
    max_tokens: int = 31  # candidates in one step of a sequence
    tree: TreeParams = field(default_factory=TreeParams)
    share_outputs: bool = False  # let answers to other requests be a source of repetitions

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UsageError(f"speculation needs at least 1 candidate, not {self.max_tokens}")


@dataclass(slots=True)
class SpeculationCounters:
    """What speculation did for one sequence."""

    num_iterations: int = 0  # steps that made tokens
    num_generated_tokens: int = 0  # in these steps
    num_draft_tokens: int = 0  # candidates that the target verified
    num_accepted_tokens: int = 0  # candidates that it would have chosen too
    num_draft_forwards: int = 0  # runs of the draft model

    @property
    def tokens_per_iteration(self) -> float:
        """Tokens a step made on average; 1 is plain decoding, 0 if there was no step."""
        return _ratio(self.num_generated_tokens, self.num_iterations)

    @property
    def forwards_per_iteration(self) -> float:
        """Runs of the draft model for each step."""
        return _ratio(self.num_draft_forwards, self.num_iterations)

    @property
    def acceptance(self) -> float:
        """Accepted candidates / verified candidates."""
        return _ratio(self.num_accepted_tokens, self.num_draft_tokens)

    @property
    def draft_efficiency(self) -> float:
        """Accepted candidates / runs of the draft model."""
        return _ratio(self.num_accepted_tokens, self.num_draft_forwards)

    def as_json(self) -> dict[str, int]:
        """The counts under the original's names."""
        return {
            "n_iterations": self.num_iterations,
            "n_generated_tokens": self.num_generated_tokens,
            "n_draft_times": self.num_draft_forwards,
            "n_draft_tokens": self.num_draft_tokens,
            "n_accepted_tokens": self.num_accepted_tokens,
        }

    def add(self, other: SpeculationCounters) -> None:
        """Add another sequence's counts."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
