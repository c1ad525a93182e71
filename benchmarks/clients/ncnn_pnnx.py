"""ncnn, by way of pnnx from the TorchScript file of every network that `prepare.py` has left.

    pip install ncnn pnnx
    python benchmarks/clients/ncnn_pnnx.py runs/clients

ncnn stores weights in 16 bits where it can unless it is told not to, which costs about 4e-4; here it is told.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import ncnn
import numpy as np
from common import Run, answer

SIXTEEN_BITS = ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage")


def load(path: Path) -> Run:
    """The TorchScript file `path` as an ncnn network in 32 bits."""
    shape = ",".join(map(str, np.load(path.parent / "images.npy", mmap_mode="r").shape[1:]))
    net = ncnn.Net()
    for option in SIXTEEN_BITS:
        setattr(net.opt, option, False)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "network.pt"
        file.write_bytes(path.read_bytes())
        tool = Path(sys.executable).with_name("pnnx")
        command = [str(tool), file.name, f"inputshape=[1,{shape}]", "fp16=0"]
        ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise RuntimeError(f"pnnx ended with {ended.returncode}: {ended.stderr.splitlines()[-1:]}")
        for read, suffix in ((net.load_param, "param"), (net.load_model, "bin")):
            if read(str(file.with_name(f"network.ncnn.{suffix}"))):
                raise RuntimeError(f"ncnn does not load what pnnx wrote ({suffix})")

    def run(images: np.ndarray) -> np.ndarray:
        with net.create_extractor() as extractor:
            image = np.ascontiguousarray(images[0])
            extractor.input("in0", ncnn.Mat(image))
            code, out = extractor.extract("out0")
            if code:
                raise RuntimeError(f"ncnn ended with {code}")
            return np.array(out).copy()  # it lies in the extractor's memory

    return run


if __name__ == "__main__":
    answer(
        "ncnn",
        f"ncnn {version('ncnn')}, pnnx {version('pnnx')}",
        load,
        ("model.ts",),
        "pnnx model.ts inputshape=[1,3,H,W] fp16=0",
    )
