"""llama-cpp-python, alone or with its prompt lookup decoding.

    python peer_llama_cpp_python.py '{"mode": "lookup:3", "model": …}'

Reads a JSON object a line from standard input and answers each with a line; see Peer in
peers.py. A number behind the mode is the most candidates of a step, where the default of 10
is not wanted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from time import perf_counter
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

KV_TYPES = {
    "F16": llama_cpp.GGML_TYPE_F16,
    "F32": llama_cpp.GGML_TYPE_F32,
    "Q8_0": llama_cpp.GGML_TYPE_Q8_0,
}


class CountingLookup(LlamaPromptLookupDecoding):
    """Prompt lookup that counts what it proposes."""

    num_candidates = 0

    def __call__(self, input_ids: npt.NDArray[np.intc], /, **kwargs: Any) -> npt.NDArray[np.intc]:
        """The candidates that follow `input_ids`."""
        candidates = super().__call__(input_ids, **kwargs)
        self.num_candidates += len(candidates)
        return candidates


class CountingLlama(llama_cpp.Llama):
    """A model that counts its steps."""

    num_evals = 0

    def eval(self, tokens: list[int]) -> None:
        """Compute these tokens."""
        self.num_evals += 1
        super().eval(tokens)


def main() -> None:
    """Load, say so, and answer until the input ends."""
    model = load(json.loads(sys.argv[1]))
    print("ready", flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        print(json.dumps(complete(model, question["prompt"], question["num_tokens"])), flush=True)


def load(request: Mapping[str, Any]) -> CountingLlama:
    """One sequence, flash attention."""
    mode, _, limit = request["mode"].partition(":")
    lookup = CountingLookup(num_pred_tokens=int(limit or 10)) if mode == "lookup" else None
    return CountingLlama(
        request["model"],
        n_ctx=request["context"],
        n_batch=512,
        n_threads=request["threads"],
        n_threads_batch=request["threads"],
        type_k=KV_TYPES[request["kv_type"]],
        type_v=KV_TYPES[request["kv_type"]],
        flash_attn=True,
        draft_model=lookup,
        logits_all=lookup is not None,  # its buffer is too small for long prompts otherwise
        verbose=False,
    )


def complete(model: CountingLlama, prompt: list[int], num_tokens: int) -> dict[str, object]:
    """A greedy answer."""
    lookup = model.draft_model
    model.reset()
    model.num_evals = 0
    if lookup is not None:
        lookup.num_candidates = 0
    times_s, token_ids = [perf_counter()], []
    for token_id in model.generate(prompt, temp=0.0, top_k=1):
        times_s.append(perf_counter())
        token_ids.append(token_id)
        is_end = llama_cpp.llama_vocab_is_eog(model._model.vocab, token_id)
        if is_end or len(token_ids) == num_tokens:
            break
    num_steps = model.num_evals - 1
    return {
        "token_ids": token_ids,
        "num_tokens": len(token_ids),
        "decode_s": times_s[-1] - times_s[1],
        "total_s": times_s[-1] - times_s[0],
        "num_steps": num_steps,
        "num_candidates": 0 if lookup is None else lookup.num_candidates,
        "num_accepted": len(token_ids) - 1 - num_steps,
    }


if __name__ == "__main__":
    main()
