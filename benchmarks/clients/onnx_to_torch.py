"""onnx2torch, back to a torch module: pip install onnx2torch."""

from importlib.metadata import version
from pathlib import Path

import onnx
import onnx2torch
import torch
from common import Run, answer


def load(path: Path) -> Run:
    module = onnx2torch.convert(onnx.load(path)).eval()

    def run(images):
        with torch.inference_mode():
            return module(torch.from_numpy(images)).numpy()

    return run


if __name__ == "__main__":
    answer("onnx2torch", version("onnx2torch"), load, how="`onnx2torch.convert`")
