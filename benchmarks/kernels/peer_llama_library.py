"""llama.cpp or ik_llama.cpp, driven through the C functions that their Python packages bind.

    python peer_llama_library.py llama_cpp|ik_llama_cpp MODEL THREADS

Answers questions (subject.py) until its input ends. Nothing is sampled, as in llama-bench.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from abc import abstractmethod
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np
from subject import Subject, answer_questions

NUM_CELLS = 1024
BATCH_SIZE = 512
TOKEN_ID = 1000  # an ordinary one in every vocabulary; which one does not change the time


LOG_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class LlamaLibrary(Subject):
    """What both libraries have in common."""

    def __init__(self, api: Any, model: str, num_threads: int) -> None:
        self._api = api
        self._log = LOG_CALLBACK(_say_nothing)
        self._function("llama_log_set", None, LOG_CALLBACK, ctypes.c_void_p)(self._log, None)
        api.llama_backend_init()
        self._model = self._load(model)
        params = api.llama_context_default_params()
        params.n_ctx = NUM_CELLS
        params.n_batch = params.n_ubatch = BATCH_SIZE
        params.n_threads = params.n_threads_batch = num_threads
        self._choose_flash_attention(params)
        self._context = api.llama_init_from_model(self._model, params)
        if not (self._model and self._context):
            raise SystemExit(f"{model} cannot be loaded")
        self._vocab_size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        self._batch = api.llama_batch_init(BATCH_SIZE, 0, 1)
        self._depth = 0
        info = self._function("llama_print_system_info", ctypes.c_char_p)()
        self.system = " ".join(info.decode().split())

    def prefill(self, num_tokens: int) -> list[float]:
        self._forget_from(0)
        return [self._run([TOKEN_ID] * num_tokens, 0, all_logits=False)]

    def decode(self, depth: int, num_tokens: int) -> list[float]:
        self.prefill(depth)
        return [self._run([TOKEN_ID], depth + index) for index in range(num_tokens)]

    def begin_steps(self, depth: int) -> None:
        self.prefill(depth)
        self._depth = depth

    def step(self, num_tokens: int) -> float:
        seconds = self._run([TOKEN_ID] * num_tokens, self._depth)
        self._forget_from(self._depth)
        return seconds

    def predict(self, token_ids: Sequence[int]) -> list[int]:
        self._forget_from(0)
        self._run(token_ids, 0)
        return [int(self._logits(index).argmax()) for index in range(len(token_ids))]

    @property
    @abstractmethod
    def _library(self) -> ctypes.CDLL:
        """The loaded library."""

    @abstractmethod
    def _load(self, path: str) -> int:
        """The model, with weights rearranged for the processor where the library can."""

    @abstractmethod
    def _choose_flash_attention(self, params: Any) -> None:
        """Change the context's parameters."""

    @abstractmethod
    def _forget_from(self, position: int) -> None:
        """Drop the tokens from this position on."""

    def _run(self, token_ids: Sequence[int], start: int, *, all_logits: bool = True) -> float:
        batch, last = self._batch, len(token_ids) - 1
        batch.n_tokens = len(token_ids)
        for index, token_id in enumerate(token_ids):
            batch.token[index], batch.pos[index] = token_id, start + index
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
            batch.logits[index] = all_logits or index == last
        start_s = perf_counter()
        failed = self._api.llama_decode(self._context, batch)
        self._api.llama_get_logits_ith(self._context, last)  # waits until they are there
        seconds = perf_counter() - start_s
        if failed:
            raise SystemExit(f"a step of {len(token_ids)} tokens failed")
        return seconds

    def _logits(self, index: int) -> np.ndarray:
        pointer = self._api.llama_get_logits_ith(self._context, index)
        return np.ctypeslib.as_array(pointer, (self._vocab_size,))

    def _function(self, name: str, result: Any, *arguments: Any) -> Any:
        """A function that the package need not have bound."""
        return ctypes.CFUNCTYPE(result, *arguments)((name, self._library))


class LlamaCpp(LlamaLibrary):
    """llama.cpp in llama-cpp-python; it rearranges weights unasked."""

    @property
    def _library(self) -> ctypes.CDLL:
        return self._api.llama_cpp._lib

    def _load(self, path: str) -> int:
        params = self._api.llama_model_default_params()
        return self._api.llama_model_load_from_file(path.encode(), params)

    def _choose_flash_attention(self, params: Any) -> None:
        params.flash_attn_type = self._api.LLAMA_FLASH_ATTN_TYPE_ENABLED

    def _forget_from(self, position: int) -> None:
        memory = self._api.llama_get_memory(self._context)
        self._api.llama_memory_seq_rm(memory, 0, position, -1)


class IkLlamaCpp(LlamaLibrary):
    """ik_llama.cpp in ik-llama-cpp-python, with run-time repacking (its `-rtr`)."""

    @property
    def _library(self) -> ctypes.CDLL:
        return self._api._lib

    def _load(self, path: str) -> int:
        params = self._api.llama_model_default_params()
        params.repack_tensors, params.use_mmap = True, False  # as `-rtr` sets them
        return self._api.llama_model_load_from_file(path.encode(), params)

    def _choose_flash_attention(self, params: Any) -> None:
        params.flash_attn = True

    def _forget_from(self, position: int) -> None:
        remove = self._function(
            "llama_kv_cache_seq_rm", ctypes.c_bool, ctypes.c_void_p, *[ctypes.c_int32] * 3
        )
        remove(self._context, 0, position, -1)


def _say_nothing(level: int, text: bytes, data: object) -> None:
    """In place of the library's log."""


def main() -> None:
    """Load, say so, and answer until the input ends."""
    package, model, num_threads = sys.argv[1:]
    if package == "llama_cpp":
        api, kind = importlib.import_module("llama_cpp"), LlamaCpp
    else:
        api, kind = importlib.import_module("ik_llama_cpp._ctypes_api"), IkLlamaCpp
    answer_questions(kind(api, model, int(num_threads)))


if __name__ == "__main__":
    main()
