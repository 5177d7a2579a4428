"""From files to a speculator: the draft model, if there is one, and the cost curves."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path

from powerserve.core import machine
from powerserve.core.errors import MemoryLimitError, UsageError
from powerserve.core.tracing import NO_TRACER, Tracer
from powerserve.engine.devices import Devices, PlacedModel
from powerserve.engine.engine import EngineConfig
from powerserve.engine.model_files import ModelFiles
from powerserve.speculative.curve_store import CurveKey, CurveSource
from powerserve.speculative.draft import DraftModel
from powerserve.speculative.options import SpeculationMode, SpeculationOptions
from powerserve.speculative.speculator import Speculator
from powerserve.speculative.vocabulary import check_same_vocabulary
from powerserve.storage.cache_folder import cache_folder
from powerserve.storage.gguf import GGUFFile
from powerserve.storage.resolve import ModelSource
from powerserve.tokenizer.vocabulary import Metadata


def load_speculator(
    options: SpeculationOptions,
    target: ModelFiles,
    vocabulary: Metadata,
    devices: Devices,
    placed: PlacedModel,
    engine: EngineConfig,
    stop_ids: Collection[int],
    tracer: Tracer = NO_TRACER,
) -> Speculator | None:
    """Load the draft model, if one is wanted, and make a speculator; None: speculation is off.

    The target runs where it is `placed`; the draft model gets its place from `devices`.

    Raises:
        UsageError: the mode needs a draft model and there is none, or it has other tokens.
        PowerServeError: a subclass says what is wrong with the draft's files or the memory.
    """
    if options.mode is SpeculationMode.OFF or engine.deterministic or engine.batch_size < 2:
        return None
    draft_source = _wanted_draft(options.mode, target.source)
    draft, draft_curve = None, None
    if draft_source is not None:
        draft, draft_place = _load_draft(draft_source, vocabulary, devices, engine, tracer)
        draft_curve = _curve_source(draft_source.weights, draft_place, engine)
    return Speculator(
        options,
        vocab_size=target.config.vocab_size,
        stop_ids=stop_ids,
        curve=_curve_source(target.source.weights, placed, engine),
        draft=draft,
        draft_curve=draft_curve,
    )


def _wanted_draft(mode: SpeculationMode, source: ModelSource) -> ModelSource | None:
    if mode is SpeculationMode.SUFFIX:
        return None
    if mode is SpeculationMode.AUTO and source.draft_is_optional:
        return None
    if mode.needs_draft and source.draft is None:
        raise UsageError(
            f"speculation of the kind `{mode}` needs a draft model, and {source.name} comes "
            "without one; name it with --draft-model or as main+draft"
        )
    return source.draft


def _load_draft(
    source: ModelSource,
    vocabulary: Metadata,
    devices: Devices,
    engine: EngineConfig,
    tracer: Tracer,
) -> tuple[DraftModel, PlacedModel]:
    """The draft model and its place; a cache that holds less than the target's is enough."""
    with GGUFFile.open(source.weights) as weights, ExitStack() as undo:
        own = weights if source.vocab == source.weights else GGUFFile.open(source.vocab)
        check_same_vocabulary(vocabulary, own.metadata, source.name)
        files = ModelFiles.read(source, weights)
        try:
            placed = devices.load(files, engine.context_size, is_draft=True)
        except MemoryLimitError as error:
            raise MemoryLimitError(f"the draft model {source.name}: {error}") from None
        undo.callback(placed.model.close)
        num_cells = max(engine.num_cells, engine.context_size)
        draft = DraftModel(
            placed.model,
            num_cells=min(num_cells, placed.model.capabilities.max_cells or num_cells),
            context_size=engine.context_size,
            batch_size=engine.batch_size,
            kv_dtype=engine.kv_dtype,
            tracer=tracer,
        )
        undo.pop_all()
        return draft, placed


def _curve_source(weights: Path, placed: PlacedModel, engine: EngineConfig) -> CurveSource:
    key = CurveKey(weights, placed.backend.device, machine.cpu_name(), engine.kv_dtype.name)
    return CurveSource(cache_folder() / "cost-curves", key, placed.model.capabilities.batch_sizes)
