"""The `qnn/` folder of a model: binaries, config.json and the system prompt's K and V.

Below it, if wanted, are `emulator/` (the same for Qualcomm's emulator, a binary per batch size) and
`cpu/` (the quantised ONNX graphs themselves), each a complete folder of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from powerserve.backend.qnn.config_file import (
    CPU_FOLDER,
    EMULATOR_FOLDER,
    ChunkGraph,
    LMHeadGraph,
    ModelParameters,
    QnnConfig,
    QnnParameters,
    write_qnn_config,
)
from powerserve.backend.qnn.soc import Soc
from powerserve.convert.qnn.build_folder import BuildFolder
from powerserve.convert.qnn.compile_plan import CompiledPart
from powerserve.convert.qnn.onnx_graph import WEIGHTS_FILE
from powerserve.convert.qnn.plan import Part, Plan
from powerserve.storage.copying import FileCopy, copy_files, file_errors, files_below
from powerserve.storage.progress import Progress

Place = Callable[[Part, int], tuple[str, str]]
"""The name of a part's graph for a batch size, and its file below the folder."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """What is delivered: a compiled plan, and the tokens whose K and V lie in the build folder."""

    plan: Plan
    build: BuildFolder
    soc: Soc
    compiled: Mapping[Part, CompiledPart]
    system_tokens: tuple[int, ...]

    def write(
        self, output: Path, progress: Progress, *, with_emulator: bool, with_cpu: bool
    ) -> None:
        """Fill the folder `output`; each config.json comes last. Raises UsageError."""
        self._write_folder(output, self._on_device, self._device_files(), progress)
        if with_emulator:
            folder = output / EMULATOR_FOLDER
            self._write_folder(folder, self._on_emulator, self._emulator_files(), progress)
        if with_cpu:
            self._write_folder(output / CPU_FOLDER, self._on_cpu, self._cpu_files(), progress)

    def _write_folder(
        self, folder: Path, place: Place, files: Iterator[FileCopy], progress: Progress
    ) -> None:
        with file_errors(f"cannot write {folder}"):
            copies = list(files)
            if self.system_tokens:
                copies += files_below(self.build.system_prompt)
            folder.mkdir(parents=True, exist_ok=True)
            size_bytes = sum(copy.size_bytes for copy in copies)
            with progress.transfer(str(folder), size_bytes, 0) as advance:
                copy_files(copies, folder, advance)
            write_qnn_config(folder, self._config(place))

    def _config(self, place: Place) -> QnnConfig:
        sizes, config = self.plan.sizes, self.plan.config
        return QnnConfig(
            graphs=tuple(
                self._chunk_graph(part, batch_size, *place(part, batch_size))
                for batch_size in sizes.batch_sizes
                for part in self.plan.chunks
            ),
            model_parameters=ModelParameters(
                n_layers=config.num_layers,
                vocab_size=config.vocab_size,
                embed_dim=config.embed_dim,
                ffn_hidden_dim=config.ffn_dim,
                head_dim=config.head_dim,
                n_kv_heads=config.num_kv_heads,
                rope_theta=config.rope.freq_base,
                rms_norm_eps=config.norm_eps,
                tie_embedding=config.tied_embeddings,
            ),
            qnn_parameters=QnnParameters(n_hvx_threads=self.soc.hvx_threads),
            embeddings=tuple(self._lm_heads(place)),
            system_prompt_tokens=self.system_tokens,
            soc_model=self.soc.model,
        )

    def _chunk_graph(self, part: Part, batch_size: int, name: str, path: str) -> ChunkGraph:
        return ChunkGraph(
            graph_name=name,
            start_layer_id=part.start_layer,
            end_layer_id=part.end_layer,
            batch_size=batch_size,
            cache_size=self.plan.sizes.cache_size,
            context_size=self.plan.sizes.context_size,
            model_path=path,
            kv_size=len(self.system_tokens),
        )

    def _lm_heads(self, place: Place) -> Iterator[LMHeadGraph]:
        lm_head = self.plan.lm_head
        if lm_head is not None:
            for batch_size in self.plan.sizes.batch_sizes:
                name, path = place(lm_head, batch_size)
                yield LMHeadGraph(graph_name=name, batch_size=batch_size, model_path=path)

    def _on_device(self, part: Part, batch_size: int) -> tuple[str, str]:
        return self.compiled[part].graph_name(self.plan, batch_size), f"{part.stem}.bin"

    def _on_emulator(self, part: Part, batch_size: int) -> tuple[str, str]:
        path = self.build.emulator_binary(part, batch_size, self.soc.part)
        return self.compiled[part].emulator[batch_size].graph_names[0], path.name

    def _on_cpu(self, part: Part, batch_size: int) -> tuple[str, str]:
        path = self.build.onnx_file(part, batch_size)
        return path.stem, path.relative_to(self.build.graphs).as_posix()

    def _device_files(self) -> Iterator[FileCopy]:
        for part in self.plan.parts:
            path = self.build.device_binary(part, self.soc.part)
            yield _copy(path, PurePath(path.name))

    def _emulator_files(self) -> Iterator[FileCopy]:
        for part in self.plan.parts:
            for batch_size in self.plan.sizes.batch_sizes:
                path = self.build.emulator_binary(part, batch_size, self.soc.part)
                yield _copy(path, PurePath(path.name))

    def _cpu_files(self) -> Iterator[FileCopy]:
        for part in self.plan.parts:
            graphs = [self.build.onnx_file(part, size) for size in self.plan.sizes.batch_sizes]
            for path in (*graphs, graphs[0].with_name(WEIGHTS_FILE)):
                yield _copy(path, PurePath(path.relative_to(self.build.graphs)))


def _copy(source: Path, place: PurePath) -> FileCopy:
    return FileCopy(source, place, source.stat().st_size)
