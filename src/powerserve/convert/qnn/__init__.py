"""From a model to graphs that the NPU compiler takes: lowering, calibration, quantisation."""
