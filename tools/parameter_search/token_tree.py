#!/usr/bin/env python3
"""The original's search for the parameters of token trees, `powerserve search-tree`.

Its two searches and their `analyze.py` are one command now: `--report` ranks what is done.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch import launch

launch("search-tree")
