#!/usr/bin/env python3
"""The original's extractor of token embeddings, `powerserve extract-embeddings`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch import launch

launch("extract-embeddings")
