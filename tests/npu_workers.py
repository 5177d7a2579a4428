"""Workers for `powerserve.convert.qnn.child`: run as `python -m npu_workers` in a child process."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from powerserve.convert.qnn.child import serve
from powerserve.core.errors import UsageError


def work(request: dict[str, Any]) -> Any:
    """Do what the request says: end in some way, or answer it."""
    match request["do"]:
        case "answer":
            return {"twice": 2 * request["number"]}
        case "kill":
            os.kill(os.getpid(), signal.Signals[request["signal"]])
        case "complain":
            print("[E:library] the weights are too heavy", file=sys.stderr)
            raise UsageError("a sentence")
        case "fail":
            raise RuntimeError("of a library")
        case "wait":
            Path(request["file"]).write_text(f"{os.getpid()}\n")
            time.sleep(600)
        case "exit":
            os._exit(3)
    return None


if __name__ == "__main__":
    serve(work)
