"""LiteRT (TensorFlow Lite), through litert-torch: pip install litert-torch."""

from importlib.metadata import version
from pathlib import Path

import litert_torch
import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter
from common import Run, answer


def load(path: Path) -> Run:
    shape = np.load(path.with_name("images.npy"), mmap_mode="r").shape[1:]
    module = torch.export.load(path).module()
    written = path.with_suffix(".tflite")
    litert_torch.convert(module, (torch.zeros(1, *shape),)).export(str(written))
    interpreter = Interpreter(str(written), num_threads=1)
    run = interpreter.get_signature_runner()
    (argument,), (output,) = run.get_input_details(), run.get_output_details()
    return lambda images: run(**{argument: images})[output]


if __name__ == "__main__":
    how = "`litert_torch.convert(torch.export.load('model.pt2').module(), inputs)`"
    answer("LiteRT", version("ai-edge-litert"), load, forms=("model.pt2",), how=how)
