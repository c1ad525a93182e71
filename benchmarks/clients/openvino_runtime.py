"""OpenVINO on the processor, which reads ONNX itself: pip install openvino."""

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
