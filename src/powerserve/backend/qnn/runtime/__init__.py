"""Ways to execute compiled graphs: QNN itself, or onnxruntime around it."""
