"""ctypes binding of native/kernels: quantised matrices packed for this processor, and operations
with them that ggml's threads execute.

Source: native/kernels/powerserve_kernels.h, whose names are kept without the prefix `psk_`.
"""

from __future__ import annotations

import ctypes
from ctypes import c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_void_p
from enum import IntFlag
from pathlib import Path
from typing import Any

from powerserve.backend.ggml.kernels.whole_file import is_cut_off
from powerserve.core.dtypes import DType
from powerserve.core.errors import BackendError, UsageError

ABI = 4
MAX_WEIGHTS = 3
PANEL_ROWS = 16  # rows of a weight that are packed together


class Flag(IntFlag):
    """What `op_linear` does beside multiplying; sources follow its input in this order."""

    PREPARED = 1  # the input is what op_prepare made
    NORM = 2  # the input is normalised first (RMSNorm)
    BIAS = 4
    RESIDUAL = 8  # something is added to the product
    SWIGLU = 16  # silu(first product) · second product


class LinearSpec(ctypes.Structure):
    """struct PskLinear: the user data of an operation, which must live as long as its graph."""

    _fields_ = (
        ("flags", c_int32),
        ("num_weights", c_int32),
        ("types", c_int32 * MAX_WEIGHTS),
        ("eps", c_float),
        ("in_features", c_int64),
        ("rows", c_int64 * MAX_WEIGHTS),
        ("next_item", c_int64),
        ("num_done", c_int64),
    )


class StoreSpec(ctypes.Structure):
    """struct PskStore: user data of `op_store`."""

    _fields_ = (("rope_dim", c_int64), ("is_half_split", c_int32))


class SliceSpec(ctypes.Structure):
    """struct PskSlice: tokens of one sequence, and the cells that they may see."""

    _fields_ = (
        ("first_token", c_int64),
        ("num_tokens", c_int64),
        ("first_cell", c_int64),
        ("num_cells", c_int64),
        ("mask_offset", c_int64),
    )


class AttentionSpec(ctypes.Structure):
    """struct PskAttention: user data as well; the arrays that it points to must live as long."""

    _fields_ = (
        ("scale", c_float),
        ("num_slices", c_int32),
        ("slices", ctypes.POINTER(SliceSpec)),
        ("head_dim", c_int64),
        ("num_heads", c_int64),
        ("num_kv_heads", c_int64),
        ("num_finished", ctypes.POINTER(c_int32)),
        ("next_item", c_int64),
        ("num_done", c_int64),
    )


_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "get_instruction_sets": (c_char_p, []),
    "get_instruction_set": (c_char_p, []),
    "set_instruction_set": (c_int32, [c_char_p]),
    "packed_bytes": (c_size_t, [c_int32, c_int64, c_int64]),
    "pack": (None, [c_int32, c_int64, c_int64, c_void_p, c_void_p, c_int64, c_int64]),
    "unpack": (None, [c_int32, c_int64, c_int64, c_void_p, c_void_p, c_int64, c_int64]),
    "prepared_bytes": (c_size_t, [c_int64, c_int64]),
    "max_unprepared": (c_int64, []),
    "op_prepare": (None, [c_void_p, c_int, c_int, c_void_p]),
    "op_linear": (None, [c_void_p, c_int, c_int, c_void_p]),
    "op_store": (None, [c_void_p, c_int, c_int, c_void_p]),
    "can_attend": (c_int32, [c_int64, c_int64]),
    "attention_floats": (c_size_t, [ctypes.POINTER(AttentionSpec)]),
    "op_attention": (None, [c_void_p, c_int, c_int, c_void_p]),
}


class KernelLibrary:
    """The kernels in the shared library at `path`; every bound function is an attribute.

    Raises:
        BackendError: it cannot be loaded, is of another version, or has nothing for this processor.
    """

    get_instruction_sets: Any
    get_instruction_set: Any
    set_instruction_set: Any
    packed_bytes: Any
    pack: Any
    unpack: Any
    prepared_bytes: Any
    max_unprepared: Any
    op_prepare: Any
    op_linear: Any
    op_store: Any
    can_attend: Any
    attention_floats: Any
    op_attention: Any

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if is_cut_off(path):
                raise OSError("the file is not whole")
            self._handle = ctypes.CDLL(str(path))
            abi: int = self._handle.psk_abi()
        except (OSError, AttributeError) as error:
            raise BackendError(f"the kernels in {path} cannot be loaded: {error}") from None
        if abi != ABI:
            raise BackendError(f"the kernels in {path} are of version {abi}; {ABI} is needed")
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(self._handle, f"psk_{name}")
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        if not self.instruction_sets:
            raise BackendError(f"the kernels in {path} do not fit this processor")

    @property
    def instruction_sets(self) -> list[str]:
        """Those that this processor can be served with, best first."""
        names: bytes = self.get_instruction_sets()
        return names.decode().split()

    @property
    def instruction_set(self) -> str:
        """The one in use."""
        name: bytes = self.get_instruction_set()
        return name.decode()

    def use(self, instruction_set: str) -> None:
        """Use another from now on; what is prepared for the old one becomes worthless.

        Raises:
            UsageError: this processor does not have it.
        """
        if self.set_instruction_set(instruction_set.encode()):
            known = ", ".join(self.instruction_sets)
            raise UsageError(f"there are no kernels for {instruction_set!r} here, but for: {known}")

    def packed_size(self, dtype: DType, shape: tuple[int, ...]) -> int:
        """Bytes of a packed matrix [rows, in_features]; 0 if there are no kernels for it."""
        size: int = self.packed_bytes(dtype.ggml_id, *shape)
        return size

    def can_pack(self, dtype: DType, shape: tuple[int, ...]) -> bool:
        """Whether there are kernels for such a matrix."""
        return self.packed_size(dtype, shape) > 0

    def address(self, operation: Any) -> int:
        """The address of a bound function, as `ggml_custom_4d` takes it."""
        address = ctypes.cast(operation, c_void_p).value
        assert address is not None
        return address
