"""onnxsim and onnxslim, whose files ONNX Runtime then runs: pip install onnxsim onnxslim onnxruntime."""

from importlib.metadata import version
from pathlib import Path

import onnx
import onnxsim
import onnxslim
from common import Run, answer
from onnx_runtime import load as load_in_onnx_runtime


def load_by_onnxsim(path: Path) -> Run:
    simplified, equal = onnxsim.simplify(onnx.load(path))
    if not equal:
        raise ValueError("onnxsim's own check fails")
    return run_of(simplified, path.with_name(f"onnxsim-{path.name}"))


def load_by_onnxslim(path: Path) -> Run:
    return run_of(onnxslim.slim(onnx.load(path)), path.with_name(f"onnxslim-{path.name}"))


def run_of(model: onnx.ModelProto, path: Path) -> Run:
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return load_in_onnx_runtime(path)


if __name__ == "__main__":
    answer("onnxsim", version("onnxsim"), load_by_onnxsim, how="`onnxsim.simplify`, then ONNX Runtime")
    answer("onnxslim", version("onnxslim"), load_by_onnxslim, how="`onnxslim.slim`, then ONNX Runtime")
