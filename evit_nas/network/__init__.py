"""Networks: an ArchConfig as a torch module, as a deploy graph, as ONNX, and its closed-form cost."""
