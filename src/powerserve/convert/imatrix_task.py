"""Making an importance matrix from a model and a text, in a run that can be stopped and continued.

What has been counted is saved beside the target as `NAME.part`, in the same format with a digest of
the model and the text; the next run with the same model and text goes on from there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from powerserve.backend.base import Backend, Int32Array, LoadedModel
from powerserve.backend.ggml.backend import GgmlBackend, GgmlOptions
from powerserve.convert.imatrix_collect import Counted, count_windows
from powerserve.convert.imatrix_file import read_sums, write_imatrix
from powerserve.core.errors import PowerServeError
from powerserve.evaluate.windows import DEFAULT_WINDOW, started_windows, text_windows
from powerserve.graph.observe import observe_inputs
from powerserve.model.config import config_from_metadata
from powerserve.model.registry import build_graph
from powerserve.storage.gguf import GGUFFile
from powerserve.storage.gguf_writer import string_value
from powerserve.storage.model_contents import content_id
from powerserve.storage.resolve import ModelSource
from powerserve.tokenizer.tokenizer import Tokenizer

SAVE_INTERVAL_S = 30.0  # the most work that a kill can lose
_DIGEST_KEY = "powerserve.imatrix.digest"


@dataclass(frozen=True, slots=True)
class ImatrixOptions:
    """What to measure and how."""

    window: int = DEFAULT_WINDOW  # tokens
    max_windows: int | None = None
    num_threads: int = 0  # 0: as many as this process may use
    use_mmap: bool = False


@dataclass(frozen=True, slots=True)
class ImatrixTask:
    """A loaded model, the windows of a text, and the file to make of them."""

    backend: Backend
    model: LoadedModel
    model_id: str
    windows: Int32Array  # [n, window]
    dataset: str
    target: Path

    @property
    def part_path(self) -> Path:
        """Where unfinished work is kept."""
        return self.target.with_name(f"{self.target.name}.part")

    def saved(self) -> Counted:
        """What an earlier run of this task has counted; nothing if there was none."""
        nothing = Counted(self.windows.shape[1])
        if not self.part_path.exists():
            return nothing
        try:
            with GGUFFile.open(self.part_path) as part:
                num_windows = part.metadata.get("imatrix.chunk_count")
                if not isinstance(num_windows, int) or num_windows > len(self.windows):
                    return nothing
                if part.metadata.get(_DIGEST_KEY) != self._digest(num_windows):
                    return nothing
                return Counted.from_sums(nothing.window, num_windows, read_sums(part))
        except PowerServeError:  # damaged, or a foreign file: it is only a saving of time
            return nothing

    def run(self, start: Counted) -> Iterator[int]:
        """Count the windows after `start` and write the file; yields the windows counted so far.

        When it is stopped in between, what has been counted is saved. Raises UsageError if a file
        cannot be written.
        """
        counted, saved_at = start, monotonic()
        try:
            for counted in count_windows(self.model, self.windows, start):
                yield counted.num_windows
                if monotonic() - saved_at > SAVE_INTERVAL_S:
                    self._save(counted)
                    saved_at = monotonic()
        except BaseException:
            if counted.num_windows:
                self._save(counted)
            raise
        self._write(self.target, counted, {})
        self.part_path.unlink(missing_ok=True)

    def _save(self, counted: Counted) -> None:
        digest = string_value(self._digest(counted.num_windows))
        self._write(self.part_path, counted, {_DIGEST_KEY: digest})

    def _write(self, path: Path, counted: Counted, extra: dict[str, bytes]) -> None:
        write_imatrix(
            path,
            counted.sums,
            num_chunks=counted.num_windows,
            chunk_size=counted.window,
            datasets=[self.dataset],
            extra=extra,
        )

    def _digest(self, num_windows: int) -> str:
        """Of the model and the first windows: more of the same text may follow."""
        digest = hashlib.sha256(self.model_id.encode())
        digest.update(repr(self.windows[:num_windows].shape).encode())
        digest.update(self.windows[:num_windows].tobytes())
        return digest.hexdigest()


@contextmanager
def imatrix_task(
    source: ModelSource, text: str, dataset: str, target: Path, options: ImatrixOptions
) -> Iterator[ImatrixTask]:
    """Load the model and cut the text, for as long as the context lasts.

    Raises UsageError if the text is too short; what loading a model raises.
    """
    with GGUFFile.open(source.weights) as weights, ExitStack() as cleanup:
        vocabulary = weights if source.vocab == source.weights else GGUFFile.open(source.vocab)
        tokenizer = Tokenizer.from_metadata(vocabulary.metadata)
        windows = text_windows(tokenizer, text, options.window, options.max_windows)
        config = config_from_metadata(weights.metadata, weights.tensors)
        graph = observe_inputs(build_graph(config))
        backend = GgmlBackend(GgmlOptions(options.num_threads, use_mmap=options.use_mmap))
        cleanup.callback(backend.close)
        model = backend.load(config, graph, weights.tensors)
        cleanup.callback(model.close)
        model_id = content_id(source.weights)
        started = started_windows(tokenizer, windows)
        yield ImatrixTask(backend, model, model_id, started, dataset, target)
