#!/usr/bin/env python3
"""llama.cpp's converter as the original ships it, `powerserve convert hf-to-gguf`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch import launch

launch("convert", "hf-to-gguf")
