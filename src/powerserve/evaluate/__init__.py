"""Measurements of models: how well they predict, and how fast they run."""
