"""llama.cpp's server inside xllamacpp, with one of its kinds of speculation.

    python peer_xllamacpp.py '{"mode": "ngram-simple:8", "model": …}'

Reads a JSON object a line from standard input and answers each with a line; see Peer in
peers.py. A number behind the mode is the most candidates of a step, where llama.cpp's default
is not wanted. llama.cpp does not count steps: each step makes one token besides those accepted.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

import xllamacpp as llama

KV_TYPES = {"F16": "GGML_TYPE_F16", "F32": "GGML_TYPE_F32", "Q8_0": "GGML_TYPE_Q8_0"}
KINDS = {
    "off": "NONE",
    "draft": "DRAFT_SIMPLE",
    "ngram-simple": "NGRAM_SIMPLE",
    "ngram-map-k": "NGRAM_MAP_K",
    "ngram-map-k4v": "NGRAM_MAP_K4V",
    "ngram-cache": "NGRAM_CACHE",
    "ngram-mod": "NGRAM_MOD",
}
UNLIMITED = ("off", "ngram-cache", "ngram-mod")  # kinds whose candidates cannot be limited


def main() -> None:
    """Load, say so, and answer until the input ends."""
    server = load(json.loads(sys.argv[1]))
    print("ready", flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        answer = complete(server, question["prompt"], question["num_tokens"])
        print(json.dumps(answer), flush=True)
    os._exit(0)  # llama.cpp's threads need not be joined


def load(request: Mapping[str, Any]) -> llama.Server:
    """One slot, no cache between requests, flash attention."""
    params = llama.CommonParams()
    params.model.path = request["model"]
    params.n_ctx = request["context"]
    params.n_batch = params.n_ubatch = 512
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = request["threads"]
    params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
    kv_type = getattr(llama.ggml_type, KV_TYPES[request["kv_type"]])
    params.cache_type_k = params.cache_type_v = kv_type
    params.cache_prompt = params.fit_params = params.warmup = False
    params.cache_ram_mib = 0
    params.verbosity = 0
    speculate(params.speculative, request)
    return llama.Server(params)


def speculate(params: llama.CommonParamsSpeculative, request: Mapping[str, Any]) -> None:
    """Choose the kind of speculation."""
    kind, _, limit = request["mode"].partition(":")
    kinds = llama.common_speculative_type
    if kind not in KINDS or (limit and kind in UNLIMITED):
        raise SystemExit(f"llama.cpp's server has no speculation {request['mode']}")
    params.types = [getattr(kinds, f"COMMON_SPECULATIVE_TYPE_{KINDS[kind]}")]
    if kind == "draft":
        draft = params.draft
        draft.mparams.path = request["draft"]
        draft.cpuparams.n_threads = draft.cpuparams_batch.n_threads = request["threads"]
        if limit:
            draft.n_max = int(limit)
    elif limit:
        getattr(params, kind.replace("-", "_")).size_m = int(limit)


def complete(server: llama.Server, prompt: list[int], num_tokens: int) -> dict[str, object]:
    """A greedy answer, and llama.cpp's own figures about it."""
    request = {
        "prompt": prompt,
        "n_predict": num_tokens,
        "cache_prompt": False,
        "temperature": 0,
        "samplers": ["top_k"],
        "top_k": 1,
    }
    timings = server.handle_completions(request)["timings"]
    num_made, num_accepted = timings["predicted_n"], timings.get("draft_n_accepted", 0)
    return {
        "token_ids": [],
        "num_tokens": num_made,
        # The first token belongs to the prompt; llama.cpp's clock of decoding starts after it.
        "decode_s": timings["predicted_ms"] / 1000,
        "total_s": (timings["prompt_ms"] + timings["predicted_ms"]) / 1000,
        "num_steps": num_made - 1 - num_accepted,
        "num_candidates": timings.get("draft_n", 0),
        "num_accepted": num_accepted,
    }


if __name__ == "__main__":
    main()
