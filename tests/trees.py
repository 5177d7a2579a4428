"""Speculators for tests: trees made up by the test, and engines that verify them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from powerserve.backend.base import Backend, LoadedModel
from powerserve.core import dtypes
from powerserve.engine.engine import Engine, EngineConfig
from powerserve.model.config import config_from_metadata
from powerserve.model.registry import build_graph
from powerserve.speculative.cost_model import SIZES, CostCurve
from powerserve.speculative.curve_store import CurveSource
from powerserve.speculative.draft import DraftModel
from powerserve.speculative.options import SpeculationOptions
from powerserve.speculative.speculator import Speculator
from powerserve.speculative.state import ProposalRequest
from powerserve.speculative.tree import FlatTree, TokenTree
from powerserve.storage.gguf import GGUFFile

Invent = Callable[[TokenTree, ProposalRequest], None]
"""Fills a tree."""

FREE = CostCurve(SIZES, tuple(1.0 + size / 1e6 for size in SIZES), 0.0)
"""Candidates cost next to nothing, so as many as there are will be verified."""


class KnownCurve(CurveSource):
    """A curve that needs no measuring."""

    def __init__(self, curve: CostCurve = FREE) -> None:
        super().__init__()
        self.curve = curve


class WithoutClock(Speculator):
    """The real thing but for the time: steps cost what the curve says, however long they take."""

    def observe_step(self, num_tokens: int, num_cells: int, seconds: float) -> None:
        """Ignore the clock."""


class InventedTrees(WithoutClock):
    """A speculator whose trees a test makes up."""

    def __init__(self, invent: Invent) -> None:
        super().__init__(SpeculationOptions(), vocab_size=0, stop_ids=(), curve=KnownCurve())
        self._invent = invent

    def propose(self, requests: Sequence[ProposalRequest]) -> list[FlatTree | None]:
        flats: list[FlatTree | None] = []
        for request in requests:
            tree = TokenTree(int(request.token_ids[-1]), request.max_depth)
            self._invent(tree, request)
            flats.append(tree.flatten(tree.best(len(tree))) if len(tree) > 1 else None)
        return flats


def load(backend: Backend, path: Path) -> LoadedModel:
    """A model's weights in a backend."""
    with GGUFFile.open(path) as file:
        config = config_from_metadata(file.metadata, file.tensors)
        return backend.load(config, build_graph(config), file.tensors)


def speculator_for(
    model: LoadedModel,
    options: SpeculationOptions,
    draft: LoadedModel | None = None,
    stop_ids: Sequence[int] = (),
) -> WithoutClock:
    """A speculator with a cost curve that makes every candidate worthwhile."""
    drafting = None
    if draft is not None:
        can = draft.capabilities
        drafting = DraftModel(
            draft,
            num_cells=can.max_cells or 1024,
            context_size=256,
            batch_size=32,
            kv_dtype=dtypes.F32 if dtypes.F32 in can.kv_dtypes else can.kv_dtypes[0],
        )
    return WithoutClock(
        options,
        vocab_size=model.config.vocab_size,
        stop_ids=stop_ids,
        curve=KnownCurve(),
        draft=drafting,
        draft_curve=KnownCurve(),
    )


def engine_with(model: LoadedModel, speculator: Speculator | None, **changes: object) -> Engine:
    """A small engine with F32 cells."""
    settings = {
        "context_size": 128, "batch_size": 64, "num_cells": 1024, "kv_dtype": dtypes.F32,
    } | changes  # fmt: skip
    return Engine(model, EngineConfig(**settings), speculator=speculator)  # type: ignore[arg-type]


def finish(engine: Engine) -> None:
    """Run until there is nothing left to do."""
    for _ in range(10_000):
        if not engine.has_work:
            return
        engine.step()
    raise AssertionError("the engine does not come to an end")
