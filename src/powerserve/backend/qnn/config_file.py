"""qnn/config.json: which compiled graphs a model folder holds, and their sizes.

The format is the original PowerServe's; keys that it does not know are ignored by it, so what we
add (`system_prompt_tokens`, `vocab_size` of an LM head, …) does not disturb it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from powerserve.backend.qnn.tensors import ChunkShape
from powerserve.core.errors import ConfigError
from powerserve.storage.json_file import read_json, write_json

FILE_NAME = "config.json"
EMULATOR_FOLDER = "emulator"  # below qnn/: binaries without shared weights, which it cannot load
CPU_FOLDER = "cpu"  # below qnn/: the ONNX files that binaries are compiled from
KV_PATH_FORMAT = "kv/layer_{layer_id}_{kv_type}_{head_id}.raw"  # kv_type: key or value

Count = Annotated[int, Meta(ge=0)]
Size = Annotated[int, Meta(ge=1)]


@dataclass(frozen=True, slots=True)
class ModelParameters:
    """`model_parameters`: sizes of the model; only the mask value matters at run time."""

    n_layers: Count = 0
    vocab_size: Count = 0
    embed_dim: Count = 0
    ffn_hidden_dim: Count = 0
    head_dim: Count = 0
    n_kv_heads: Count = 0
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    attention_mask_value: float = -5e4
    tie_embedding: bool = False


@dataclass(frozen=True, slots=True)
class QnnParameters:
    """`qnn_parameters`: how the graphs want to be run."""

    n_hvx_threads: Size = 4


@dataclass(frozen=True, slots=True)
class ChunkGraph:
    """An entry of `graphs`: one chunk compiled for one batch size."""

    graph_name: str
    start_layer_id: Count
    end_layer_id: Size  # exclusive
    batch_size: Size
    cache_size: Size
    context_size: Size
    model_path: str  # the context binary, below the folder
    kv_path_format: str = KV_PATH_FORMAT
    kv_size: Count = 0  # tokens of the system prompt whose K and V lie in kv/
    x_name: str = "x"
    out_name: str = "out"
    type: str = "transformers"

    @property
    def shape(self) -> ChunkShape:
        """The sizes the graph was compiled for."""
        return ChunkShape(
            self.start_layer_id,
            self.end_layer_id,
            self.batch_size,
            self.cache_size,
            self.context_size,
        )


@dataclass(frozen=True, slots=True)
class LMHeadGraph:
    """An entry of `embeddings`: the LM head compiled for one batch size."""

    graph_name: str
    batch_size: Size
    model_path: str
    x_name: str = "x"
    out_name: str = "logits"


CompiledEntry = ChunkGraph | LMHeadGraph


@dataclass(frozen=True, slots=True)
class QnnConfig:
    """What qnn/config.json says.

    `system_prompt_tokens` are the token ids whose K and V lie in kv/; folders of the original lack
    them.
    """

    graphs: tuple[ChunkGraph, ...]
    model_parameters: ModelParameters = field(default_factory=ModelParameters)
    qnn_parameters: QnnParameters = field(default_factory=QnnParameters)
    embeddings: tuple[LMHeadGraph, ...] = ()
    system_prompt_tokens: tuple[int, ...] | None = None
    soc_model: int | None = None  # Qualcomm's number of the SoC it was compiled for

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Compiled batch sizes, ascending."""
        return tuple(sorted({graph.batch_size for graph in self.graphs}))

    @property
    def cache_size(self) -> int:
        """Cells of the KV cache."""
        return self.graphs[0].cache_size

    @property
    def context_size(self) -> int:
        """Columns of the attention bias."""
        return self.graphs[0].context_size

    @property
    def num_system_tokens(self) -> int:
        """Tokens whose K and V lie in kv/."""
        return self.graphs[0].kv_size

    @property
    def num_layers(self) -> int:
        """Layers of all chunks together."""
        return max(graph.end_layer_id for graph in self.graphs)

    @property
    def has_lm_head(self) -> bool:
        """Whether the output layer was compiled too; if not, it is the CPU's part."""
        return bool(self.embeddings)

    @property
    def compiled(self) -> tuple[CompiledEntry, ...]:
        """All graphs, the chunks before the LM heads."""
        return (*self.graphs, *self.embeddings)

    @property
    def model_paths(self) -> tuple[str, ...]:
        """The context binaries, each once, below the folder."""
        return tuple(dict.fromkeys(entry.model_path for entry in self.compiled))

    def chunks(self, batch_size: int) -> list[ChunkGraph]:
        """The graphs for one batch size, in the order of their layers."""
        graphs = [graph for graph in self.graphs if graph.batch_size == batch_size]
        return sorted(graphs, key=lambda graph: graph.start_layer_id)


@dataclass(frozen=True, slots=True)
class QnnFolder:
    """A folder of compiled graphs, and what its config.json says."""

    path: Path
    files: QnnConfig

    @property
    def size_bytes(self) -> int:
        """Bytes of the context binaries."""
        return sum((self.path / name).stat().st_size for name in self.files.model_paths)

    @property
    def stamp(self) -> tuple[tuple[int, int], ...]:
        """Sizes and times of the context binaries, which tell another conversion."""
        statuses = [(self.path / name).stat() for name in self.files.model_paths]
        return tuple((status.st_size, status.st_mtime_ns) for status in statuses)

    @classmethod
    def read(cls, path: Path) -> QnnFolder:
        """Read the folder's config.json; raises ConfigError."""
        return cls(path, read_qnn_config(path))


def read_qnn_config(folder: Path) -> QnnConfig:
    """Read and check `folder`/config.json; raises ConfigError."""
    path = folder / FILE_NAME
    config = read_json(path, QnnConfig)
    problem = _problem(config)
    if problem is not None:
        raise ConfigError(f"{path}: {problem}")
    return config


def write_qnn_config(folder: Path, config: QnnConfig) -> None:
    """Write `folder`/config.json; what is None is left out. Raises OSError."""
    content = {key: value for key, value in asdict(config).items() if value is not None}
    write_json(folder / FILE_NAME, content)


def _problem(config: QnnConfig) -> str | None:
    """What contradicts itself in the file, as the end of a sentence."""
    if not config.graphs:
        return "`graphs` is empty, so nothing can be run"
    if problem := _different_sizes(config.graphs):
        return problem
    for batch_size in config.batch_sizes:
        if problem := _layer_gap(config.chunks(batch_size), config.num_layers):
            return f"batch size {batch_size}: {problem}"
    largest = config.batch_sizes[-1]
    if config.embeddings and all(head.batch_size != largest for head in config.embeddings):
        return f"`embeddings` has no graph for the largest batch size, {largest}"
    tokens = config.system_prompt_tokens
    if tokens is not None and len(tokens) != config.num_system_tokens:
        return f"{len(tokens)} system prompt tokens, but `kv_size` is {config.num_system_tokens}"
    return _escaping_path([*config.graphs, *config.embeddings])


def _different_sizes(graphs: Sequence[ChunkGraph]) -> str | None:
    for key in ("cache_size", "context_size", "kv_size"):
        values: set[Any] = {getattr(graph, key) for graph in graphs}
        if len(values) > 1:
            return f"`{key}` differs between graphs: {sorted(values)}"
    first = graphs[0]
    for graph in graphs:
        if graph.cache_size + graph.batch_size > graph.context_size:
            return (
                f"a cache of {graph.cache_size} and a batch of {graph.batch_size} do not fit in "
                f"a context of {graph.context_size}"
            )
    if first.kv_size > first.cache_size:
        return f"`kv_size` {first.kv_size} is larger than the cache, {first.cache_size}"
    return None


def _layer_gap(chunks: Sequence[ChunkGraph], num_layers: int) -> str | None:
    expected = 0
    for chunk in chunks:
        if chunk.start_layer_id != expected or chunk.end_layer_id <= expected:
            return f"layer {expected} is missing or comes twice"
        expected = chunk.end_layer_id
    return None if expected == num_layers else f"layers from {expected} on are missing"


def _escaping_path(graphs: Sequence[ChunkGraph | LMHeadGraph]) -> str | None:
    """A folder comes from elsewhere: its paths must stay inside it."""
    for graph in graphs:
        path = Path(graph.model_path)
        if path.is_absolute() or ".." in path.parts:
            return f"the path {graph.model_path!r} leaves the folder"
    return None
