"""ctypes binding of the ggml functions PowerServe calls, checked when it is loaded.

Source: the public headers ggml.h, ggml-alloc.h, ggml-backend.h and ggml-cpu.h (MIT). Functions keep
ggml's names without the `ggml_` prefix: `library.mul_mat(ctx, a, b)`. Tensors, contexts, graphs and
buffers are plain addresses (`int`); `Tensor.from_address` reads a tensor's fields.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from ctypes import c_bool, c_char_p, c_float, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

from powerserve.backend.ggml.locate import library_file, library_file_names
from powerserve.core.errors import BackendError

MAX_DIMS = 4
MAX_THREADS = 512
CPU_DEVICE = 0  # enum ggml_backend_dev_type
USAGE_WEIGHTS = 1  # enum ggml_backend_buffer_usage
STATUS_SUCCESS = 0  # enum ggml_status
STATUS_ABORTED = 1
ALL_THREADS = -1  # GGML_N_TASKS_MAX
ROPE_INTERLEAVED = 0
ROPE_HALF_SPLIT = 2  # GGML_ROPE_TYPE_NEOX


class InitParams(ctypes.Structure):
    """struct ggml_init_params"""

    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


class Tensor(ctypes.Structure):
    """struct ggml_tensor, unchanged from ggml 0.10 to 0.25"""

    _fields_ = (
        ("type", c_int),
        ("buffer", c_void_p),
        ("ne", c_int64 * MAX_DIMS),
        ("nb", c_size_t * MAX_DIMS),
        ("op", c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", c_void_p * 10),
        ("view_src", c_void_p),
        ("view_offs", c_size_t),
        ("data", c_void_p),
        ("name", ctypes.c_char * 64),
        ("extra", c_void_p),
        ("padding", ctypes.c_char * 8),
    )


class ThreadpoolParams(ctypes.Structure):
    """struct ggml_threadpool_params"""

    _fields_ = (
        ("cpumask", c_bool * MAX_THREADS),
        ("n_threads", c_int),
        ("prio", c_int),
        ("poll", ctypes.c_uint32),
        ("strict_cpu", c_bool),
        ("paused", c_bool),
    )


_LOG_CALLBACK = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)
_ABORT_CALLBACK = ctypes.CFUNCTYPE(None, c_char_p)
_EXTRA_BUFTS = ctypes.CFUNCTYPE(ctypes.POINTER(c_void_p), c_void_p)

_P, _I, _I64, _F, _SIZE, _STR = c_void_p, c_int, c_int64, c_float, c_size_t, c_char_p

# name: (result, arguments)
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "init": (_P, [InitParams]),
    "free": (None, [_P]),
    "version": (_STR, []),
    "commit": (_STR, []),
    "tensor_overhead": (_SIZE, []),
    "graph_overhead_custom": (_SIZE, [_SIZE, c_bool]),
    "new_tensor_1d": (_P, [_P, _I, _I64]),
    "new_tensor_2d": (_P, [_P, _I, _I64, _I64]),
    "new_tensor_3d": (_P, [_P, _I, _I64, _I64, _I64]),
    "set_name": (_P, [_P, _STR]),
    "set_input": (None, [_P]),
    "set_output": (None, [_P]),
    "nbytes": (_SIZE, [_P]),
    "row_size": (_SIZE, [_I, _I64]),
    # quantisation
    "quantize_chunk": (_SIZE, [_I, _P, _P, _I64, _I64, _I64, _P]),
    "validate_row_data": (c_bool, [_I, _P, _SIZE]),
    # operations
    "rms_norm": (_P, [_P, _P, _F]),
    "mul": (_P, [_P, _P, _P]),
    "add": (_P, [_P, _P, _P]),
    "sqr": (_P, [_P, _P]),
    "repeat_back": (_P, [_P, _P, _P]),
    "mul_mat": (_P, [_P, _P, _P]),
    "get_rows": (_P, [_P, _P, _P]),
    "set_rows": (_P, [_P, _P, _P, _P]),
    "cpy": (_P, [_P, _P, _P]),
    "cont": (_P, [_P, _P]),
    "reshape_2d": (_P, [_P, _P, _I64, _I64]),
    "reshape_3d": (_P, [_P, _P, _I64, _I64, _I64]),
    "view_1d": (_P, [_P, _P, _I64, _SIZE]),
    "view_2d": (_P, [_P, _P, _I64, _I64, _SIZE, _SIZE]),
    "view_3d": (_P, [_P, _P, _I64, _I64, _I64, _SIZE, _SIZE, _SIZE]),
    "permute": (_P, [_P, _P, _I, _I, _I, _I]),
    "rope_ext": (_P, [_P, _P, _P, _P, _I, _I, _I, _F, _F, _F, _F, _F, _F]),
    "flash_attn_ext": (_P, [_P, _P, _P, _P, _P, _F, _F, _F]),
    "swiglu_split": (_P, [_P, _P, _P]),
    "custom_4d": (_P, [_P, _I, _I64, _I64, _I64, _I64, ctypes.POINTER(_P), _I, _P, _I, _P]),
    # graphs
    "new_graph_custom": (_P, [_P, _SIZE, c_bool]),
    "build_forward_expand": (None, [_P, _P]),
    "graph_n_nodes": (_I, [_P]),
    "graph_node": (_P, [_P, _I]),
    "graph_clear": (None, [_P]),
    "graph_add_node": (None, [_P, _P]),
    "op_desc": (_STR, [_P]),
    "gallocr_new": (_P, [_P]),
    "gallocr_free": (None, [_P]),
    "gallocr_alloc_graph": (c_bool, [_P, _P]),
    "gallocr_get_buffer_size": (_SIZE, [_P, _I]),
    # buffers
    "backend_buft_name": (_STR, [_P]),
    "backend_buft_alloc_buffer": (_P, [_P, _SIZE]),
    "backend_alloc_ctx_tensors_from_buft": (_P, [_P, _P]),
    "backend_buffer_free": (None, [_P]),
    "backend_buffer_get_base": (_P, [_P]),
    "backend_buffer_get_size": (_SIZE, [_P]),
    "backend_buffer_set_usage": (None, [_P, _I]),
    "backend_tensor_set": (None, [_P, _P, _SIZE, _SIZE]),
    "backend_tensor_alloc": (_I, [_P, _P, _P]),
    "backend_cpu_buffer_type": (_P, []),
    "backend_cpu_buffer_from_ptr": (_P, [_P, _SIZE]),
    # the CPU backend
    "backend_cpu_init": (_P, []),
    "backend_free": (None, [_P]),
    "backend_get_device": (_P, [_P]),
    "backend_dev_supports_op": (c_bool, [_P, _P]),
    "backend_dev_backend_reg": (_P, [_P]),
    "backend_reg_get_proc_address": (_P, [_P, _STR]),
    "backend_graph_compute": (_I, [_P, _P]),
    "backend_cpu_set_n_threads": (None, [_P, _I]),
    "backend_cpu_set_threadpool": (None, [_P, _P]),
    "backend_cpu_set_abort_callback": (None, [_P, _P, _P]),
    "threadpool_params_init": (None, [ctypes.POINTER(ThreadpoolParams), _I]),
    "threadpool_new": (_P, [ctypes.POINTER(ThreadpoolParams)]),
    "threadpool_free": (None, [_P]),
}

CPU_FEATURES = (
    *("sse3", "ssse3", "avx", "avx2", "bmi2", "f16c", "fma", "avx_vnni"),
    *("avx512", "avx512_vbmi", "avx512_vnni", "avx512_bf16", "amx_int8"),
    *("neon", "arm_fma", "fp16_va", "dotprod", "matmul_int8", "sve", "sme", "llamafile"),
)  # the NAME of each `ggml_cpu_has_NAME`


class GgmlLibrary:
    """ggml's shared libraries, loaded from one folder; every bound function is an attribute.

    Raises:
        BackendError: a library or function is missing, or structures have an unknown layout.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._handles = [_open(folder, name) for name in ("ggml-base", "ggml-cpu", "ggml")]
        for name, (result, arguments) in _SIGNATURES.items():
            setattr(self, name, self.function(f"ggml_{name}", result, arguments))
        self._install_callbacks()
        self._check_layout()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        # Only reached for unbound names; tells the type checker that bound functions are callable.
        raise AttributeError(f"ggml function {name!r} is not bound")

    @property
    def version_text(self) -> str:
        """ggml's own version, such as `0.20.2`."""
        version: bytes = self.version()
        return version.decode()

    def features(self) -> list[str]:
        """The CPU features the library was built to use, in ggml's names."""
        return [name for name in CPU_FEATURES if self._has(name)]

    def extra_buffer_types(self, device: int) -> list[int]:
        """Buffer types that repack weights for this CPU's matrix kernels, best first."""
        registry = self.backend_dev_backend_reg(device)
        address = self.backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
        if not address:
            return []
        array = _EXTRA_BUFTS(address)(device)
        found: list[int] = []
        while pointer := array[len(found)]:
            found.append(pointer)
        return found

    def new_context(self, num_tensors: int, num_graph_nodes: int = 0) -> int:
        """A context for `num_tensors` tensor headers (no data) and, if wanted, one graph."""
        size = self.tensor_overhead() * num_tensors
        if num_graph_nodes:
            size += self.graph_overhead_custom(num_graph_nodes, False)
        context: int | None = self.init(InitParams(size, None, True))
        if not context:
            raise BackendError("ggml could not create a context: out of memory")
        return context

    def _has(self, feature: str) -> bool:
        function = getattr(self._handles[1], f"ggml_cpu_has_{feature}", None)
        return bool(function()) if function is not None else False

    def function(self, name: str, result: Any, arguments: list[Any]) -> Any:
        """The C function `name` with these types. Raises BackendError if there is none."""
        for handle in self._handles:
            function = getattr(handle, name, None)
            if function is not None:
                function.restype, function.argtypes = result, arguments
                return function
        raise BackendError(f"the ggml libraries in {self.folder} have no function {name}")

    def _install_callbacks(self) -> None:
        self.function("ggml_log_set", None, [_LOG_CALLBACK, c_void_p])(_KEEP_SILENT, None)
        self.function("ggml_set_abort_callback", c_void_p, [_ABORT_CALLBACK])(_REPORT_ABORT)

    def _check_layout(self) -> None:
        """Read a new tensor back through our structure: a wrong layout would corrupt memory."""
        context = self.new_context(2)
        try:
            address = self.new_tensor_2d(context, 1, 96, 7)
            self.set_name(address, b"layout")
            tensor = Tensor.from_address(address)
            sound = (
                tensor.type == 1
                and list(tensor.ne) == [96, 7, 1, 1]
                and list(tensor.nb) == [2, 192, 1344, 1344]
                and tensor.name == b"layout"
                and self.tensor_overhead() >= ctypes.sizeof(Tensor)
            )
        finally:
            self.free(context)
        if not sound:
            raise BackendError(
                f"ggml {self.version_text} in {self.folder} lays out tensors in an unknown way; "
                "use the version PowerServe was released with"
            )


def _open(folder: Path, name: str) -> ctypes.CDLL:
    path = library_file(folder, name)
    if path is None:
        raise BackendError(f"there is no {library_file_names(name, sys.platform)[0]} in {folder}")
    try:
        return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise BackendError(f"{path} cannot be loaded: {error}") from None


def _report_abort(message: bytes) -> None:
    """ggml is about to abort the process: say so in one line, without a core dump."""
    text = message.decode(errors="replace").strip()
    os.write(2, f"powerserve: internal error in ggml: {text}\n".encode())
    os._exit(70)


# ggml has one of each for the whole process, so they must outlive every GgmlLibrary.
_KEEP_SILENT = _LOG_CALLBACK(lambda _level, _text, _data: None)
_REPORT_ABORT = _ABORT_CALLBACK(_report_abort)
