#!/usr/bin/env python3
"""The original's test with MMMU against a server, `powerserve mmmu`.

As there, the server is at port 10000, unless flags say otherwise; the questions are in this folder.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch import launch

flags = ["--dataset", str(Path(__file__).resolve().parent)]
if not any(argument.partition("=")[0] in ("--url", "--port") for argument in sys.argv[1:]):
    flags += ["--port", "10000"]
launch("mmmu", *flags)
