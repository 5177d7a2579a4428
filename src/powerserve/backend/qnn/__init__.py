"""The Qualcomm NPU: precompiled graphs of a model's chunks, executed through QNN."""
