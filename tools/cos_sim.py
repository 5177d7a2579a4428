#!/usr/bin/env python3
"""The original's comparison of two lists of numbers, `powerserve cos-sim`."""

from launch import launch

launch("cos-sim")
