"""ONNX Runtime, of whichever version is installed: pip install onnxruntime==1.22.0 numpy."""

from pathlib import Path

import onnxruntime as ort
from common import Run, answer


def load(path: Path) -> Run:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"input": images})[0]


if __name__ == "__main__":
    answer("ONNX Runtime", ort.__version__, load, how="`InferenceSession`")
