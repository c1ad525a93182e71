"""What torch itself makes of every network that `prepare.py` has left: TorchScript, torch.fx, export, compile.

    python benchmarks/clients/torch_compilers.py runs/clients

torch.compile is tried with the backend aot_eager, which needs no compiler on the machine.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Run, answer
from torch import nn

from evit_nas.arch import ArchConfig
from evit_nas.network.model import build
from evit_nas.network.weights import load_weights

COMPILERS: dict[str, Callable[[nn.Module, torch.Tensor], Any]] = {
    "torch.jit.script": lambda model, images: torch.jit.script(model),
    "torch.fx.symbolic_trace": lambda model, images: torch.fx.symbolic_trace(model),
    "torch.export": lambda model, images: torch.export.export(model, (images,)).module(),
    "torch.compile": lambda model, images: torch.compile(model, backend="aot_eager", fullgraph=True),
}


def loader(compiler: Callable[[nn.Module, torch.Tensor], Any]) -> Callable[[Path], Run]:
    def load(path: Path) -> Run:
        with torch.device("meta"):
            model = build(ArchConfig.load(path.parent / "arch.yaml"))
        load_weights(model, path)
        compiled = compiler(model.eval(), torch.zeros(1, model.in_chans, *model.arch.input_size))

        def run(images: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                logits: np.ndarray = compiled(torch.from_numpy(images)).numpy()
            return logits

        return run

    return load


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for name, compiler in COMPILERS.items():
        answer(name, f"torch {torch.__version__}", loader(compiler), ("model.safetensors",), name)
