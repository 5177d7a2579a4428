"""What llama.cpp makes of a model, in a process of its own; driven by `compare.py`.

    PYTHONPATH=FOLDER python peer_llama_cpp.py quantize IN OUT FILE_TYPE [IMATRIX.npz]
    PYTHONPATH=FOLDER python peer_llama_cpp.py perplexity MODEL TOKENS.npy WINDOW
    PYTHONPATH=FOLDER python peer_llama_cpp.py squares MODEL TOKENS.npy WINDOW OUT.npz

FOLDER holds the package llama-cpp-python. FILE_TYPE is a number of `llama_ftype`; IMATRIX.npz has
mean squares by tensor. `squares` sums the squares of every matrix's inputs, seen by llama.cpp's
evaluation callback as its own imatrix tool does.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator

import llama_cpp as llama
import numpy as np

MUL_MAT = b"MUL_MAT"


class Tensor(ctypes.Structure):
    """struct ggml_tensor, up to its data."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    )


def main() -> None:
    """Do what the command line says."""
    llama.llama_log_set(_silent, ctypes.c_void_p())
    llama.llama_backend_init()
    mode, *rest = sys.argv[1:]
    {"quantize": quantize, "perplexity": perplexity, "squares": squares}[mode](*rest)


@llama.llama_log_callback
def _silent(level: int, text: bytes, data: object) -> None:
    """Say nothing."""


def quantize(source: str, target: str, file_type: str, imatrix: str = "") -> None:
    """llama_model_quantize with every default but the type."""
    params = llama.llama_model_quantize_default_params()
    params.ftype = int(file_type)
    params.allow_requantize = True
    if imatrix:
        entries = _importance(imatrix)
        params.imatrix = ctypes.cast(entries, type(params.imatrix))
    if llama.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)):
        raise SystemExit(f"llama.cpp could not quantise {source}")


def perplexity(model: str, tokens: str, window: str) -> None:
    """Print the sum of the NLL of the second half of each window, and the number of tokens."""
    size = int(window)
    total = count = 0
    for ids, logits in _windows(model, np.load(tokens), size):
        rows, targets = logits[size // 2 : size - 1], ids[size // 2 + 1 :]
        peak = rows.max(axis=1)
        norm = np.log(np.exp(rows - peak[:, None]).sum(axis=1, dtype=np.float64)) + peak
        total += float((norm - rows[np.arange(len(rows)), targets]).sum())
        count += len(rows)
    print(total, count)


def squares(model: str, tokens: str, window: str, target: str) -> None:
    """Save the mean squares of each weight's inputs."""
    sums: dict[str, np.ndarray] = {}
    count = 0

    @llama.ggml_backend_sched_eval_callback
    def observe(address: int, ask: bool, data: object) -> bool:
        node = Tensor.from_address(address)
        if llama_op_name(node.op) != MUL_MAT:
            return not ask
        weight, inputs = (Tensor.from_address(node.src[i]) for i in (0, 1))
        name = weight.name.decode()
        if not name.startswith("blk.") or inputs.type != 0 or not name.endswith(".weight"):
            return not ask
        if not ask:
            columns, rows = inputs.ne[:2]
            values = np.ctypeslib.as_array(
                ctypes.cast(inputs.data, ctypes.POINTER(ctypes.c_float)), (rows, columns)
            )
            added = np.square(values, dtype=np.float64).sum(axis=0)
            sums[name] = sums.get(name, 0) + added
        return True

    for ids, _ in _windows(model, np.load(tokens), int(window), observe):
        count += len(ids)
    np.savez(target, **{name: (values / count).astype(np.float32) for name, values in sums.items()})


def llama_op_name(op: int) -> bytes:
    """ggml's name of an operation."""
    function = llama.llama_cpp._lib.ggml_op_name
    function.restype, function.argtypes = ctypes.c_char_p, [ctypes.c_int]
    name: bytes = function(op)
    return name


def _windows(
    path: str, tokens: np.ndarray, size: int, callback: object = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(token ids, logits [size, vocabulary]) of each full window, each from an empty cache."""
    params = llama.llama_model_default_params()
    model = llama.llama_model_load_from_file(path.encode(), params)
    context_params = llama.llama_context_default_params()
    context_params.n_ctx = context_params.n_batch = context_params.n_ubatch = size
    if callback is not None:
        context_params.cb_eval = callback
    context = llama.llama_init_from_model(model, context_params)
    num_vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    batch = llama.llama_batch_init(size, 0, 1)
    for start in range(0, len(tokens) // size * size, size):
        ids = tokens[start : start + size]
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        _fill(batch, ids)
        if llama.llama_decode(context, batch):
            raise SystemExit("llama.cpp could not compute")
        logits = np.ctypeslib.as_array(llama.llama_get_logits(context), (size, num_vocab))
        yield ids, logits
    llama.llama_free(context)
    llama.llama_model_free(model)


def _fill(batch: llama.llama_batch, ids: np.ndarray) -> None:
    batch.n_tokens = len(ids)
    for index, token in enumerate(ids):
        batch.token[index], batch.pos[index] = int(token), index
        batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
        batch.logits[index] = True


def _importance(path: str) -> ctypes.Array:
    means = {name: np.ascontiguousarray(values) for name, values in np.load(path).items()}
    entries = (llama.llama_model_imatrix_data * (len(means) + 1))()
    for entry, (name, values) in zip(entries, means.items(), strict=False):
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    entries.keep_alive = means
    return entries


if __name__ == "__main__":
    main()
