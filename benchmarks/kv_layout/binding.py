"""The few ggml functions the KV-layout benchmark calls, bound with ctypes.

Self-contained on purpose: the benchmark must go on measuring the library, whatever the engine's own
binding becomes.
"""

from __future__ import annotations

import ctypes as c
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

F32, F16, Q4_0, Q8_0, I32, I64 = 0, 1, 2, 8, 26, 27
TYPE_NAMES = {F16: "F16", Q8_0: "Q8_0"}
GRAPH_NODES = 32768

_ptr, _int, _i64, _float, _size = c.c_void_p, c.c_int, c.c_int64, c.c_float, c.c_size_t


class _InitParams(c.Structure):
    _fields_ = (("mem_size", _size), ("mem_buffer", _ptr), ("no_alloc", c.c_bool))


class _ThreadpoolParams(c.Structure):
    _fields_ = (
        ("cpumask", c.c_bool * 512),
        ("n_threads", _int),
        ("prio", _int),
        ("poll", c.c_uint32),
        ("strict_cpu", c.c_bool),
        ("paused", c.c_bool),
    )


class TensorStruct(c.Structure):
    """`struct ggml_tensor` of ggml 0.20, for the one experiment that moves views in place."""

    _fields_ = (
        ("type", _int),
        ("buffer", _ptr),
        ("ne", _i64 * 4),
        ("nb", _size * 4),
        ("op", _int),
        ("op_params", c.c_int32 * 16),
        ("flags", c.c_int32),
        ("src", _ptr * 10),
        ("view_src", _ptr),
        ("view_offs", _size),
        ("data", _ptr),
        ("name", c.c_char * 64),
        ("extra", _ptr),
        ("padding", c.c_char * 8),
    )


_LOG_CALLBACK = c.CFUNCTYPE(None, _int, c.c_char_p, _ptr)

_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "init": (_ptr, [_InitParams]),
    "free": (None, [_ptr]),
    "tensor_overhead": (_size, []),
    "graph_overhead_custom": (_size, [_size, c.c_bool]),
    "new_graph_custom": (_ptr, [_ptr, _size, c.c_bool]),
    "build_forward_expand": (None, [_ptr, _ptr]),
    "log_set": (None, [_LOG_CALLBACK, _ptr]),
    "version": (c.c_char_p, []),
    "get_data": (_ptr, [_ptr]),
    "nbytes": (_size, [_ptr]),
    "row_size": (_size, [_int, _i64]),
    "quantize_chunk": (_size, [_int, _ptr, _ptr, _i64, _i64, _i64, _ptr]),
    "set_output": (None, [_ptr]),
    "new_tensor_1d": (_ptr, [_ptr, _int, _i64]),
    "new_tensor_2d": (_ptr, [_ptr, _int, _i64, _i64]),
    "new_tensor_3d": (_ptr, [_ptr, _int] + [_i64] * 3),
    "new_tensor_4d": (_ptr, [_ptr, _int] + [_i64] * 4),
    "view_2d": (_ptr, [_ptr, _ptr, _i64, _i64, _size, _size]),
    "view_3d": (_ptr, [_ptr, _ptr] + [_i64] * 3 + [_size] * 3),
    "view_4d": (_ptr, [_ptr, _ptr] + [_i64] * 4 + [_size] * 4),
    "reshape_2d": (_ptr, [_ptr, _ptr, _i64, _i64]),
    "reshape_3d": (_ptr, [_ptr, _ptr] + [_i64] * 3),
    "permute": (_ptr, [_ptr, _ptr] + [_int] * 4),
    "rms_norm": (_ptr, [_ptr, _ptr, _float]),
    "mul": (_ptr, [_ptr] * 3),
    "add": (_ptr, [_ptr] * 3),
    "mul_mat": (_ptr, [_ptr] * 3),
    "cpy": (_ptr, [_ptr] * 3),
    "cont_2d": (_ptr, [_ptr, _ptr, _i64, _i64]),
    "set_rows": (_ptr, [_ptr] * 4),
    "swiglu_split": (_ptr, [_ptr] * 3),
    "rope_ext": (_ptr, [_ptr] * 4 + [_int] * 3 + [_float] * 6),
    "flash_attn_ext": (_ptr, [_ptr] * 5 + [_float] * 3),
    "threadpool_params_init": (None, [c.POINTER(_ThreadpoolParams), _int]),
    "threadpool_new": (_ptr, [c.POINTER(_ThreadpoolParams)]),
    "threadpool_free": (None, [_ptr]),
    "backend_cpu_init": (_ptr, []),
    "backend_free": (None, [_ptr]),
    "backend_cpu_set_n_threads": (None, [_ptr, _int]),
    "backend_cpu_set_threadpool": (None, [_ptr, _ptr]),
    "backend_cpu_buffer_type": (_ptr, []),
    "backend_get_device": (_ptr, [_ptr]),
    "backend_dev_backend_reg": (_ptr, [_ptr]),
    "backend_reg_get_proc_address": (_ptr, [_ptr, c.c_char_p]),
    "backend_graph_compute": (_int, [_ptr, _ptr]),
    "backend_alloc_ctx_tensors_from_buft": (_ptr, [_ptr, _ptr]),
    "backend_tensor_alloc": (_int, [_ptr, _ptr, _ptr]),
    "backend_tensor_set": (None, [_ptr, _ptr, _size, _size]),
    "backend_buffer_set_usage": (None, [_ptr, _int]),
    "backend_buffer_free": (None, [_ptr]),
    "gallocr_new": (_ptr, [_ptr]),
    "gallocr_alloc_graph": (c.c_bool, [_ptr, _ptr]),
    "gallocr_free": (None, [_ptr]),
}


class Ggml:
    """The library, a CPU backend with its thread pool, and conveniences over both.

    Every function above is a method without its `ggml_` prefix.
    """

    def __init__(self, num_threads: int) -> None:
        handles = _open_libraries()
        for name, (result, arguments) in _SIGNATURES.items():
            function = next(
                getattr(h, "ggml_" + name) for h in handles if hasattr(h, "ggml_" + name)
            )
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        self.num_threads = num_threads
        self._silence = _LOG_CALLBACK(lambda level, text, data: None)
        self.log_set(self._silence, None)
        self.host = self.backend_cpu_buffer_type()
        self.backend = self.backend_cpu_init()
        self.backend_cpu_set_n_threads(self.backend, num_threads)
        params = _ThreadpoolParams()
        self.threadpool_params_init(c.byref(params), num_threads)
        self.threadpool = self.threadpool_new(c.byref(params))
        self.backend_cpu_set_threadpool(self.backend, self.threadpool)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    def close(self) -> None:
        self.backend_free(self.backend)
        self.threadpool_free(self.threadpool)

    def context(self, num_tensors: int, graph: bool = False) -> int:
        """A context for the headers of tensors, and of one graph; holds no data."""
        size = self.tensor_overhead() * num_tensors
        if graph:
            size += self.graph_overhead_custom(GRAPH_NODES, False)
        return self.init(_InitParams(size, None, True))

    def repack_buffer_type(self) -> int:
        """The first of the CPU's extra buffer types: weights rearranged for its kernels."""
        device = self.backend_get_device(self.backend)
        address = self.backend_reg_get_proc_address(
            self.backend_dev_backend_reg(device), b"ggml_backend_dev_get_extra_bufts"
        )
        types = c.cast(c.CFUNCTYPE(c.POINTER(_ptr), _ptr)(address)(device), c.POINTER(_ptr))
        return types[0] or self.host

    def array(self, tensor: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """The tensor's memory as a flat writable array."""
        memory = (c.c_char * self.nbytes(tensor)).from_address(self.get_data(tensor))
        return np.frombuffer(memory, dtype=dtype)


def _open_libraries() -> list[c.CDLL]:
    spec = importlib.util.find_spec("libggml")
    if spec is None or spec.origin is None:
        raise SystemExit("this benchmark needs the package libggml-python")
    folder = Path(spec.origin).parent
    handles = []
    for stem in ("ggml-base", "ggml-cpu", "ggml"):
        path = min(folder.glob(f"lib*/lib{stem}.so*"), key=lambda p: len(p.name))
        handles.append(c.CDLL(str(path), mode=c.RTLD_GLOBAL))
    return handles
