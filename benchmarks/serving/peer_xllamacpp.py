"""llama.cpp's server as the stock wheel of xllamacpp has it, until the process is ended.

python peer_xllamacpp.py MODEL THREADS CONTEXT PARALLEL --port PORT
"""

from __future__ import annotations

import signal
import sys

import xllamacpp as llama


def main() -> None:
    """Serve; all slots share the cells, everything else is llama.cpp's default."""
    model, threads, context, parallel, _, port = sys.argv[1:]
    params = llama.CommonParams()
    params.model.path = model
    params.port = int(port)
    params.n_ctx, params.n_parallel, params.kv_unified = int(context), int(parallel), True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
    params.verbosity = 0
    server = llama.Server(params)
    print(server.listening_address, flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    # Blocked in all threads, those of the server too: only `sigwait` takes them.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main()
