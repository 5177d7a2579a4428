"""From files to an engine that is ready to run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from powerserve.backend.base import Backend, LoadedModel
from powerserve.backend.qnn.options import NpuOptions
from powerserve.core import dtypes
from powerserve.core.config import ModelConfig
from powerserve.core.dtypes import DType
from powerserve.core.errors import MemoryLimitError, ModelFileError
from powerserve.core.tracing import NO_TRACER, Tracer
from powerserve.engine.devices import Devices
from powerserve.engine.engine import Engine, EngineConfig
from powerserve.engine.memory_plan import MemoryPlan
from powerserve.engine.model_files import ModelFiles
from powerserve.engine.model_identity import cells_identity
from powerserve.engine.speculator_loader import load_speculator
from powerserve.sampler.grammar_compiler import GrammarCompiler
from powerserve.speculative.options import SpeculationOptions
from powerserve.storage.gguf import GGUFFile
from powerserve.storage.resolve import ModelSource
from powerserve.tokenizer.chat import ChatTemplate
from powerserve.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What the user may choose about how a model runs."""

    context_size: int | None = None  # tokens; None: see memory_plan
    cache_size: int = 0  # tokens cached for all sequences; 0: one context
    num_threads: int = 0  # 0: as many as this process may use
    batch_size: int = 512  # tokens in one step
    max_sequences: int = 16
    max_gap_s: float | None = None  # of running answers while prompts are computed; None: any
    kv_dtype: DType = dtypes.F16
    use_mmap: bool = False
    deterministic: bool = False
    speculation: SpeculationOptions = field(default_factory=SpeculationOptions)
    backend: str = "ggml"
    poll: int | None = None  # None: the backend's default
    ggml_folder: Path | None = None  # None: the best library on this machine
    kernels: str = "auto"  # a KernelChoice of the ggml backend
    npu: NpuOptions = field(default_factory=NpuOptions)


@dataclass(slots=True)
class LoadedEngine:
    """A model ready to answer, with everything that belongs to it."""

    source: ModelSource
    config: ModelConfig
    tokenizer: Tokenizer
    template: ChatTemplate | None
    backend: Backend
    model: LoadedModel
    engine: Engine
    plan: MemoryPlan
    options: LoadOptions
    grammars: GrammarCompiler
    devices: Devices
    identity: bytes  # of model, backend and type of cache: whoever shares it can share KV cells

    @property
    def num_threads(self) -> int:
        """Threads that steps may use; one where the backend has none of its own."""
        return self.backend.num_threads

    def close(self) -> None:
        """Release everything."""
        self.engine.close()
        self.model.close()
        self.devices.close()


def load_engine(
    source: ModelSource, options: LoadOptions | None = None, *, tracer: Tracer = NO_TRACER
) -> LoadedEngine:
    """Load a model's weights and tokenizer, and make an engine for it; `tracer` sees its steps.

    The tokenizer is made in a second thread while the weights are copied and repacked, which
    happens in native code.

    Raises:
        PowerServeError: a subclass says what is wrong with the files, the options or the machine.
    """
    options = options or LoadOptions()
    with (
        GGUFFile.open(source.weights) as weights,
        ThreadPoolExecutor(1) as pool,
        ExitStack() as undo,
    ):
        vocabulary = weights if source.vocab == source.weights else GGUFFile.open(source.vocab)
        tokenizer_future = pool.submit(Tokenizer.from_metadata, vocabulary.metadata)
        files = ModelFiles.read(source, weights)
        devices = Devices(options)
        undo.callback(devices.close)
        placed = devices.load(files, options.context_size, options.cache_size)
        undo.callback(placed.model.close)
        _check_context(options, placed.plan)
        tokenizer = tokenizer_future.result()
        _check_vocabulary(files.config, tokenizer, source)
        template = ChatTemplate.from_metadata(vocabulary.metadata, tokenizer)
        engine_config = _engine_config(options, placed.plan)
        speculator = load_speculator(
            options.speculation,
            files,
            vocabulary.metadata,
            devices,
            placed,
            engine_config,
            tokenizer.stop_ids,
            tracer,
        )
        if speculator is not None:
            undo.callback(speculator.close)
        engine = Engine(
            placed.model,
            engine_config,
            stop_ids=tokenizer.stop_ids,
            newline_id=tokenizer.newline_id,
            speculator=speculator,
            tracer=tracer,
        )
        undo.pop_all()
        return LoadedEngine(
            source,
            files.config,
            tokenizer,
            template,
            placed.backend,
            placed.model,
            engine,
            placed.plan,
            options,
            GrammarCompiler(tokenizer),
            devices,
            cells_identity(files, placed.backend.kind_of_cells, options.kv_dtype),
        )


def _engine_config(options: LoadOptions, plan: MemoryPlan) -> EngineConfig:
    return EngineConfig(
        context_size=plan.context_size,
        num_cells=plan.num_cells,
        batch_size=min(options.batch_size, plan.context_size),
        max_sequences=options.max_sequences,
        max_gap_s=options.max_gap_s,
        kv_dtype=options.kv_dtype,
        deterministic=options.deterministic,
    )


def _check_context(options: LoadOptions, plan: MemoryPlan) -> None:
    """A device with a cache of fixed size may not hold what was asked for."""
    asked = options.context_size
    if asked is not None and asked > plan.context_size:
        raise MemoryLimitError(
            f"the model was compiled for the NPU with a cache of {plan.context_size:,} tokens, "
            f"not {asked:,}; -c {plan.context_size} fits, and --no-qnn runs it on the CPU"
        )


def _check_vocabulary(config: ModelConfig, tokenizer: Tokenizer, source: ModelSource) -> None:
    # Tables are often padded with unused rows, so a larger table is normal.
    if tokenizer.vocab_size > config.vocab_size:
        raise ModelFileError(
            f"the vocabulary in {source.vocab} has {tokenizer.vocab_size:,} tokens, but the model "
            f"in {source.weights} knows {config.vocab_size:,}: the files do not belong together"
        )
