"""llama.cpp as its stock Python wheel: figures of xllamacpp's server, as llama.cpp reports them.

    python peer_xllamacpp.py bench MODEL THREADS KV PREFILL DECODE REPEATS
    python peer_xllamacpp.py first MODEL THREADS KV PROMPT
    python peer_xllamacpp.py serve MODEL THREADS KV CONTEXT

`serve` answers lines `["prefill", TOKENS]` and `["decode", PROMPT, TOKENS]` with lists of seconds.
The wheel has no lower interface than the server inside the process (no HTTP is involved), so its
figures include greedy sampling and the server's work between steps.
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys

import xllamacpp as llama

KV_TYPES = {"f16": "GGML_TYPE_F16", "f32": "GGML_TYPE_F32", "q8_0": "GGML_TYPE_Q8_0"}
GREEDY = {"temperature": 0, "samplers": ["top_k"], "top_k": 1}
TOKEN_IDS = range(1000, 40_000)  # ordinary tokens in every vocabulary that is compared


def main() -> None:
    """Do what the command line says."""
    mode, model, threads, kv_type, *rest = sys.argv[1:]
    if mode == "first":
        first(load(model, int(threads), kv_type, 8192), rest[0])
    elif mode == "serve":
        serve(load(model, int(threads), kv_type, int(rest[0])))
    else:
        prefill, decode, repeats = map(int, rest)
        server = load(model, int(threads), kv_type, max(prefill, decode) + 256)
        print(json.dumps(bench(server, prefill, decode, repeats)))


def load(model: str, threads: int, kv_type: str, context: int) -> llama.Server:
    """One slot, no cache between requests, flash attention."""
    params = llama.CommonParams()
    params.model.path = model
    params.n_ctx = context
    params.n_batch = params.n_ubatch = 512
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
    params.cache_type_k = params.cache_type_v = getattr(llama.ggml_type, KV_TYPES[kv_type])
    params.cache_prompt = params.fit_params = params.warmup = False
    params.cache_ram_mib = 0
    params.verbosity = 0
    return llama.Server(params)


def bench(server: llama.Server, prefill: int, decode: int, repeats: int) -> dict[str, object]:
    """Seconds of each sample, after one for warming up."""
    samples = [_sample(server, prefill, decode) for _ in range(repeats + 1)][1:]
    return {
        "system_info": llama.get_system_info(),
        "samples": [test for pair in samples for test in pair],
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def first(server: llama.Server, prompt: str) -> None:
    """Print one token and leave at once."""
    answer = server.handle_completions({"prompt": prompt, "n_predict": 1, **GREEDY})
    print(answer["choices"][0]["text"], flush=True)
    os._exit(0)


def serve(server: llama.Server) -> None:
    """Answer questions until the input ends."""
    print(llama.get_system_info(), flush=True)
    for line in sys.stdin:
        name, *numbers = json.loads(line)
        if name == "prefill":
            seconds = [_prefill_s(server, *numbers)]
        else:
            prompt, decode = numbers
            seconds = [_decode_s(server, prompt, decode) / decode]  # the mean of its steps
        print(json.dumps(seconds), flush=True)


def _sample(server: llama.Server, prefill: int, decode: int) -> list[dict[str, object]]:
    prompt_s, tokens_s = _prefill_s(server, prefill), _decode_s(server, 1, decode)
    return [
        {"name": f"pp{prefill}", "num_tokens": prefill, "steps_s": [prompt_s]},
        {"name": f"tg{decode}", "num_tokens": decode, "steps_s": [tokens_s]},
    ]


def _prefill_s(server: llama.Server, prefill: int) -> float:
    return _timings(server, prefill, 1)["prompt_ms"] / 1000


def _decode_s(server: llama.Server, prompt: int, decode: int) -> float:
    # The first token belongs to the prompt; llama.cpp's clock starts after it.
    return _timings(server, prompt, decode + 1)["predicted_ms"] / 1000


def _timings(server: llama.Server, prompt: int, predict: int) -> dict[str, float]:
    request = {
        "prompt": random.choices(TOKEN_IDS, k=prompt),
        "n_predict": predict,
        "ignore_eos": True,
        "cache_prompt": False,
        **GREEDY,
    }
    timings: dict[str, float] = server.handle_completions(request)["timings"]
    assert timings["prompt_n"] == prompt and timings["predicted_n"] == predict
    return timings


if __name__ == "__main__":
    main()
