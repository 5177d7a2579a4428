"""Anonymous memory for tensors: zeroed on demand, in huge pages where the system offers them.

ggml allocates with `posix_memalign` in 4 KB pages. Weights are read once per token from end to end,
so address translation is a measurable part of decoding; 2 MB pages remove it.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys

import numpy as np
import numpy.typing as npt

HUGE_PAGE_BYTES = 2 << 20


class HostMemory:
    """`size` bytes of zeroed memory, page aligned; a page becomes real when first written.

    Huge pages suit memory that will be filled. The KV cache has many small ranges in use, of which
    each would make a whole huge page real: 120 MB more for SmolLM2, and no faster.
    """

    def __init__(self, size: int, *, huge_pages: bool) -> None:
        self.size = size
        rounded = -(-max(size, 1) // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
        self._map = _anonymous(rounded, huge_pages)
        self.bytes: npt.NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)
        self.address: int = self.bytes.ctypes.data

    def close(self) -> None:
        """Give the memory back; views of `bytes` that are still alive keep it until they go."""
        self.bytes = np.empty(0, np.uint8)
        with contextlib.suppress(BufferError):  # a view is alive: the map is freed with it
            self._map.close()


def _anonymous(size: int, huge_pages: bool) -> mmap.mmap:
    if not huge_pages or not hasattr(mmap, "MADV_HUGEPAGE"):
        return mmap.mmap(-1, size)
    # Private: Python's default is shared memory, which gets no huge pages.
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def advise_huge_pages(address: int, size: int) -> None:
    """Ask for huge pages in memory that someone else allocated and nobody has written yet."""
    if not sys.platform.startswith("linux") or size < HUGE_PAGE_BYTES:
        return
    libc = ctypes.CDLL(None)
    page = mmap.PAGESIZE
    start = -(-address // page) * page
    length = (address + size - start) // page * page
    # A refusal (no support) is harmless: the memory then has ordinary pages.
    libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_HUGEPAGE)
