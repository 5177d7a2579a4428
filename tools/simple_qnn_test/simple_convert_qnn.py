#!/usr/bin/env python3
"""The original's test of compiler and runtime with small graphs, `powerserve qnn simple-test`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch import launch

launch("qnn", "simple-test")
