"""The deploy graph in 8 bits, calibrated on real images; and whether it is worth having.

Static QDQ with unsigned activations and signed weights per channel: of ONNX Runtime's forms the only one that is faster
than fp32 on a processor. Small networks gain little from it, so accuracy and latency are measured, and what does not
pay is not shipped.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from evit_nas.shipped import ShippedGraph


def quantise(graph: Path, images: Iterable[np.ndarray], path: Path) -> None:
    """Writes `graph` in 8 bits.

    Args:
        graph: an ONNX file in fp32.
        images: (1, C, H, W) inputs that the ranges of the activations are taken from.

    Raises:
        MeasurementError: a convolution cannot be quantised.
    """
    from evit_nas.config import Conditions
    from evit_nas.latency.onnx_backend import quantized

    path.write_bytes(quantized(str(graph), Conditions(), images))


def refusal(fp32: ShippedGraph, int8: ShippedGraph, tolerance: float) -> str:
    """Why `int8` is not worth shipping beside `fp32`, in words; empty if it is.

    It must lose at most `tolerance` points of accuracy, and be faster by more than the spread of both latencies.
    """
    lost = fp32.top1 - int8.top1
    if lost > tolerance:
        return f"it loses {lost:.2f} points of top-1 ({fp32.top1:.2f} to {int8.top1:.2f} %); {tolerance:g} are allowed"
    slow, fast = fp32.latency, int8.latency
    if fast.median_ms * (1 + fast.rel_error) >= slow.median_ms * (1 - slow.rel_error):
        return f"it is not faster beyond the spread of the measurement: {fast} in 8 bits, {slow} in fp32"
    return ""
