"""Runs batches: picks the compiled graph for a batch's size, compiling it when it is new."""
