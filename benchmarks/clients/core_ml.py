"""coremltools, from TorchScript and from the exported program: pip install coremltools "numpy<2.4".

Core ML itself runs on Apple's systems alone, so only the conversion is tried. coremltools 9.0 takes numbers out of
arrays in a way that numpy 2.4 refuses.
"""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import coremltools
import numpy as np
import torch
from common import arguments, keep, networks, reason


def from_torchscript(path: Path, shape: tuple[int, ...]) -> coremltools.models.MLModel:
    inputs = [coremltools.TensorType(name="input", shape=shape)]
    return coremltools.convert(torch.jit.load(path), inputs=inputs, convert_to="mlprogram", skip_model_load=True)


def from_exported_program(path: Path, shape: tuple[int, ...]) -> coremltools.models.MLModel:
    program = torch.export.load(path).run_decompositions({})  # coremltools knows torch's core operators
    return coremltools.convert(program, convert_to="mlprogram", skip_model_load=True)


def outcome(convert: Callable[..., coremltools.models.MLModel], path: Path) -> dict[str, object]:
    try:
        model = convert(path, (1, *np.load(path.with_name("images.npy"), mmap_mode="r").shape[1:]))
        model.save(str(path.with_name(f"{path.name}.mlpackage")))
        return {"converted": True}
    except Exception as error:  # each converter fails in its own way
        return {"failed": reason(error)}


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.disable()
    folder = arguments().folder
    ways = {
        "model.ts": (from_torchscript, "`convert(torch.jit.load('model.ts'), inputs=[TensorType(...)])`"),
        "model.pt2": (from_exported_program, "`convert(torch.export.load('model.pt2').run_decompositions({}))`"),
    }
    for form, (convert, how) in ways.items():
        rows = []
        for network in networks():
            rows.append({"network": network, "form": form, **outcome(convert, folder / network / form)})
            print(rows[-1], flush=True)
            keep(f"coremltools from {form}", coremltools.__version__, how, rows)


if __name__ == "__main__":
    main()
