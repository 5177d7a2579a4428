#!/usr/bin/env python3
"""The original's test with MMLU against a server, `powerserve mmlu`.

As there, the server is at port 8080 and dev/ and test/ lie beside this script, unless flags say
otherwise.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch import launch

flags = ["--dataset", str(Path(__file__).resolve().parent)]
if not any(argument.partition("=")[0] in ("--url", "--port") for argument in sys.argv[1:]):
    flags += ["--port", "8080"]
launch("mmlu", *flags)
