#!/usr/bin/env python3
"""The original's one-click deployment, `powerserve deploy`: compile, run MODEL, clean."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch import launch

if sys.argv[1:2] == ["compile"]:
    sys.argv[1] = "build"
launch("deploy")
