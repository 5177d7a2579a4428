"""Prefixes that outlive the process: a private folder with one file for each model."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from powerserve.backend.base import Cache, Int64Array
from powerserve.cache.cells import CellPool
from powerserve.cache.prefix import PrefixIndex
from powerserve.cache.prefix_file import CellFormat, blocks_of, read_prefixes, write_prefixes
from powerserve.cache.prefix_tree import PrefixTree
from powerserve.core.errors import PrefixFileError
from powerserve.storage.atomic import is_partial

SUFFIX = ".prefixes"
_PRIVATE_FOLDER = 0o700
_ABANDONED_S = 3600  # nobody writes a file for so long
_ANY_CELL = np.zeros(1, np.int64)


@dataclass(frozen=True, slots=True)
class PrefixFolder:
    """Where prefixes are saved, and how much room they may take: the longest unused file goes."""

    path: Path
    max_bytes: int


class PrefixStore:
    """The saved prefixes of one model.

    At most half of the cache is saved and restored, so that there is room for new prompts.
    """

    def __init__(self, folder: PrefixFolder, identity: bytes) -> None:
        """`identity`: 32 bytes that differ for models, backends and types of cache."""
        self._folder = folder
        self._identity = identity
        self.file = folder.path / (identity.hex()[:24] + SUFFIX)

    def save(self, index: PrefixIndex, cache: Cache) -> int:
        """Replace the file by what the index holds, most recently used first.

        Returns how many tokens that are. Raises PrefixFileError.
        """
        cells = self._format(cache)
        max_rows = min(self._folder.max_bytes // cells.cell_bytes, cache.num_cells // 2)
        tree, where = PrefixTree.of(index.stored, max_rows)
        if not len(where):
            return 0
        blocks = (cache.save(where[rows]) for rows in blocks_of(len(where)))
        try:
            self._folder.path.mkdir(_PRIVATE_FOLDER, parents=True, exist_ok=True)
            write_prefixes(self.file, cells, tree, blocks)
            self._prune()
        except OSError as error:
            raise PrefixFileError(
                f"prefixes cannot be saved in {self._folder.path}: {error.strerror or error}"
            ) from None
        return len(where)

    def restore(self, index: PrefixIndex, pool: CellPool, cache: Cache) -> int:
        """Fill free cells and an empty index with what was saved; 0 if there is nothing.

        Returns how many tokens that are. Raises PrefixFileError if the file cannot be used.
        """
        room = min(pool.num_free, pool.num_cells // 2)
        cells = pool.allocate(room, 0)
        if cells is None:
            return 0
        try:
            return self._fill(index, cache, cells)
        except FileNotFoundError:
            return 0
        except PrefixFileError as error:
            raise PrefixFileError(
                f"the saved prefixes in {self.file} are left out: {error}"
            ) from None
        finally:
            pool.release(cells)  # what the index keeps has the index as its owner

    def _fill(self, index: PrefixIndex, cache: Cache, cells: Int64Array) -> int:
        num_rows = 0

        def take_block(rows: slice, content: bytes) -> None:
            nonlocal num_rows
            cache.restore(cells[rows], content)
            num_rows = rows.stop

        tree = read_prefixes(self.file, self._format(cache), take_block, len(cells))
        for path in reversed(_paths(tree)):  # the most recently used one comes last
            rows = path[path < num_rows]
            index.insert(tree.token_ids[rows], cells[rows])
        with suppress(OSError):
            os.utime(self.file)  # used now
        return num_rows

    def _format(self, cache: Cache) -> CellFormat:
        return CellFormat(self._identity, len(cache.save(_ANY_CELL)))

    def _prune(self) -> None:
        """Delete the longest unused files of other models until the folder is within its bound,
        and what processes left behind that were killed."""
        room = self._folder.max_bytes
        for status, file in sorted(self._files(), key=lambda each: -each[0].st_mtime_ns):
            room -= status.st_size
            if room < 0 and file != self.file:
                file.unlink(missing_ok=True)
        for file in self._folder.path.glob(f".*{SUFFIX}.*"):
            if is_partial(file) and time.time() - file.stat().st_mtime > _ABANDONED_S:
                file.unlink(missing_ok=True)

    def _files(self) -> Iterator[tuple[os.stat_result, Path]]:
        for file in self._folder.path.glob("*" + SUFFIX):
            with suppress(OSError):
                yield file.stat(), file


def _paths(tree: PrefixTree) -> list[Int64Array]:
    try:
        return tree.paths()
    except ValueError as error:
        raise PrefixFileError(str(error)) from None
