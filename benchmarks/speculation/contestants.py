"""Who is compared: something that answers prompts; PowerServe in each of its modes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

from powerserve.core.machine import default_threads
from powerserve.engine.loader import LoadOptions
from powerserve.llm import LLM
from powerserve.sampler.params import SamplingParams
from powerserve.speculative.options import SpeculationMode, SpeculationOptions
from powerserve.speculative.tree import FlatTree
from powerserve.storage.resolve import ModelSource

PLAIN = "off"


@dataclass(frozen=True, slots=True)
class Run:
    """One answer, and what it took."""

    token_ids: tuple[int, ...]  # empty: the peer does not tell
    num_tokens: int
    decode_s: float  # from the first token to the last
    total_s: float  # from the first step to the last token
    num_steps: int  # after the first token
    num_candidates: int  # that were verified
    num_accepted: int
    num_draft_runs: int = 0
    tree_sizes: tuple[int, ...] = ()  # tokens of each step that verified candidates

    @property
    def decode_rate(self) -> float:
        """Tokens per second after the first one; 0.0 if there is only one."""
        return (self.num_tokens - 1) / self.decode_s if self.num_tokens > 1 else 0.0

    @property
    def total_rate(self) -> float:
        """Tokens per second, the prompt's time included."""
        return self.num_tokens / self.total_s


@dataclass(frozen=True, slots=True)
class Setting:
    """What all contestants run."""

    model: ModelSource
    draft: ModelSource | None
    num_tokens: int
    temperature: float
    load: LoadOptions

    @property
    def num_threads(self) -> int:
        """As PowerServe would choose them, if nobody says."""
        return self.load.num_threads or default_threads()


class Contestant(ABC):
    """A loaded model that decodes in one way."""

    name: str

    @abstractmethod
    def run(self, prompt: Sequence[int], num_tokens: int) -> Run:
        """Continue a prompt, of which nothing is remembered from earlier runs."""

    @abstractmethod
    def close(self) -> None:
        """Release the model."""


@dataclass(frozen=True, slots=True)
class Mode:
    """A way in which PowerServe decodes."""

    speculation: SpeculationMode
    with_draft: bool = False


MODES = {
    PLAIN: Mode(SpeculationMode.OFF),
    "control": Mode(SpeculationMode.OFF),  # the same again: what it differs by is noise
    "auto": Mode(SpeculationMode.AUTO),
    "suffix": Mode(SpeculationMode.SUFFIX),
    "auto+draft": Mode(SpeculationMode.AUTO, with_draft=True),
    "draft": Mode(SpeculationMode.DRAFT, with_draft=True),
    "tree": Mode(SpeculationMode.TREE, with_draft=True),
}


class PowerServe(Contestant):
    """PowerServe in one of its modes, as its Python API offers it."""

    def __init__(self, name: str, setting: Setting) -> None:
        mode = MODES[name]
        self.name = name
        draft = setting.draft if mode.with_draft else None
        source = replace(setting.model, draft=draft, draft_is_optional=False)
        speculation = SpeculationOptions(mode=mode.speculation)
        self.llm = LLM(source, replace(setting.load, speculation=speculation))
        self._params = SamplingParams(temperature=setting.temperature, seed=1)
        self._tree_sizes: list[int] = []
        if self.llm.loaded.engine.speculator is not None:
            self.llm.loaded.engine.speculator.observer = self._observe

    def run(self, prompt: Sequence[int], num_tokens: int) -> Run:
        self.llm.loaded.engine.clear_prefixes()
        self._tree_sizes.clear()
        answer = self.llm.generate(prompt, self._params, max_tokens=num_tokens)
        timings, counters = answer.timings, answer.speculation
        count = len(answer.token_ids)
        return Run(
            token_ids=tuple(answer.token_ids),
            num_tokens=count,
            decode_s=timings.decode_s,
            total_s=timings.prefill_s + timings.decode_s,
            num_steps=count - 1 if counters is None else counters.num_iterations,
            num_candidates=0 if counters is None else counters.num_draft_tokens,
            num_accepted=0 if counters is None else counters.num_accepted_tokens,
            num_draft_runs=0 if counters is None else counters.num_draft_forwards,
            tree_sizes=tuple(self._tree_sizes),
        )

    def close(self) -> None:
        self.llm.close()

    def _observe(self, tree: FlatTree, rows: Sequence[int]) -> None:
        self._tree_sizes.append(len(tree))
