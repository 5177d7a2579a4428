"""From files to an engine that is ready to run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from powerserve.backend.base import Backend, LoadedModel
from powerserve.core import dtypes
from powerserve.core.config import ModelConfig
from powerserve.core.dtypes import DType
from powerserve.core.errors import ModelFileError, UsageError
from powerserve.core.machine import available_memory
from powerserve.engine.engine import Engine, EngineConfig
from powerserve.engine.memory_plan import MemoryPlan, plan_memory
from powerserve.graph import Graph, ShapeError
from powerserve.model.config import config_from_metadata
from powerserve.model.registry import build_graph
from powerserve.sampler.grammar_compiler import GrammarCompiler
from powerserve.storage.gguf import GGUFFile
from powerserve.storage.resolve import ModelSource
from powerserve.tokenizer.chat import ChatTemplate
from powerserve.tokenizer.tokenizer import Tokenizer

BACKENDS = ("ggml", "reference")


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What the user may choose about how a model runs."""

    context_size: int | None = None  # tokens; None: see memory_plan
    num_threads: int = 0  # 0: as many as this process may use
    batch_size: int = 512  # tokens in one step
    max_sequences: int = 16
    kv_dtype: DType = dtypes.F16
    use_mmap: bool = False
    deterministic: bool = False
    backend: str = "ggml"
    poll: int | None = None  # None: the backend's default
    ggml_folder: Path | None = None  # None: the best library on this machine


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

    @property
    def num_threads(self) -> int:
        """Threads that steps may use; one where the backend has none of its own."""
        return self.backend.num_threads

    def close(self) -> None:
        """Release everything."""
        self.engine.close()
        self.model.close()
        self.backend.close()


def load_engine(source: ModelSource, options: LoadOptions | None = None) -> LoadedEngine:
    """Load a model's weights and tokenizer, and make an engine for it.

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
        config = config_from_metadata(weights.metadata, weights.tensors)
        graph = _build_graph(config, source)
        plan = _plan(config, weights, options)
        backend = _make_backend(options)
        undo.callback(backend.close)
        model = backend.load(config, graph, weights.tensors)
        undo.callback(model.close)
        tokenizer = tokenizer_future.result()
        _check_vocabulary(config, tokenizer, source)
        template = ChatTemplate.from_metadata(vocabulary.metadata, tokenizer)
        engine = Engine(
            model,
            EngineConfig(
                context_size=plan.context_size,
                batch_size=min(options.batch_size, plan.context_size),
                max_sequences=options.max_sequences,
                kv_dtype=options.kv_dtype,
                deterministic=options.deterministic,
            ),
            stop_ids=tokenizer.stop_ids,
            newline_id=tokenizer.newline_id,
        )
        undo.pop_all()
        return LoadedEngine(
            source,
            config,
            tokenizer,
            template,
            backend,
            model,
            engine,
            plan,
            options,
            GrammarCompiler(tokenizer),
        )


def _build_graph(config: ModelConfig, source: ModelSource) -> Graph:
    try:
        return build_graph(config)
    except ShapeError as error:
        raise ModelFileError(
            f"the model's sizes in {source.weights} contradict each other: {error}"
        ) from None


def _plan(config: ModelConfig, weights: GGUFFile, options: LoadOptions) -> MemoryPlan:
    tensors = weights.tensors
    size_bytes = sum(tensor.size_bytes for tensor in tensors.values())
    if config.tied_embeddings and "token_embd.weight" in tensors:
        size_bytes += tensors["token_embd.weight"].size_bytes  # repacked for the output layer
    return plan_memory(
        config,
        weights_bytes=size_bytes,
        kv_dtype=options.kv_dtype,
        batch_size=options.batch_size,
        context_size=options.context_size,
        available_bytes=available_memory(),
    )


def _make_backend(options: LoadOptions) -> Backend:
    if options.backend == "reference":
        from powerserve.backend.reference import ReferenceBackend

        return ReferenceBackend()
    if options.backend == "ggml":
        from powerserve.backend.ggml.backend import GgmlBackend, GgmlOptions

        settings: dict[str, Any] = {} if options.poll is None else {"poll": options.poll}
        return GgmlBackend(
            GgmlOptions(num_threads=options.num_threads, use_mmap=options.use_mmap, **settings),
            options.ggml_folder,
        )
    raise UsageError(f"there is no backend {options.backend!r}; choose from {', '.join(BACKENDS)}")


def _check_vocabulary(config: ModelConfig, tokenizer: Tokenizer, source: ModelSource) -> None:
    # Tables are often padded with unused rows, so a larger table is normal.
    if tokenizer.vocab_size > config.vocab_size:
        raise ModelFileError(
            f"the vocabulary in {source.vocab} has {tokenizer.vocab_size:,} tokens, but the model "
            f"in {source.weights} knows {config.vocab_size:,}: the files do not belong together"
        )
