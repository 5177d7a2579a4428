#!/usr/bin/env python3
"""The original's converter for the NPU, `powerserve qnn convert`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch import launch

launch("qnn", "convert")
