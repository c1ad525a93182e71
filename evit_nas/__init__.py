"""evit-nas: neural architecture search for EfficientViT (MSRA) under a measured latency budget."""

__version__ = "0.2.0"
