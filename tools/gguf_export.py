#!/usr/bin/env python3
"""The original's exporter, `powerserve export`: a Hugging Face checkpoint to a model folder."""

from launch import launch

launch("export")
