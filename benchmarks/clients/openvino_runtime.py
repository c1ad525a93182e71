"""OpenVINO on the processor, which reads ONNX itself: pip install openvino.

2026.4 does not compile 8-bit files in which a map is padded along one side only, as windows of oblong images may be:
its low-precision passes give the padded side a zero point for each position, and the next reshape does not keep it.
"""

from pathlib import Path

import openvino
from common import Run, answer


def load(path: Path) -> Run:
    # where the processor has it, OpenVINO computes in 16 bits unless told otherwise
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: compiled(images)[0]


if __name__ == "__main__":
    version = openvino.__version__.split("-")[0]
    answer("OpenVINO", version, load, how="`compile_model(path, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})`")
