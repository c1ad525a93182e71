"""From an ArchConfig, and weights if there are any, to a file that deploys; checked before it is handed over.

Every format holds the folded network (see network/deploy.py). A file is written beside its place, run, and compared
with the torch network; only then it takes its name.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evit_nas.arch import ArchConfig
from evit_nas.errors import EvitNasError
from evit_nas.files import serialised
from evit_nas.trained import WEIGHTS, parted

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from evit_nas.network.model import EfficientViT

# folding alone has come to 1.1e-5 by rounding (tests/test_deploy.py)
TOLERANCE = 1e-4  # largest output difference to the torch network, relative to the largest output

Inference = Callable[["Tensor"], "Tensor"]  # images to outputs, by a written file


def export(
    to: str, arch: ArchConfig, path: Path, *, weights: Path | None = None, batch: int | None = 1, seed: int = 0
) -> float:
    """Writes the deploy form of `arch`.

    Args:
        to: one of `WRITERS`.
        weights: a checkpoint of this architecture, or a folder with one, as a training or `ship` leaves it,
            or SUPERNET#ARCH; None exports a lively random network (see network/lively.py), good for latency only.
        batch: images per inference, None for a dynamic batch size.
        seed: of the random weights and of the images that are compared.

    Returns:
        The largest output difference to the torch network, relative to the largest output.

    Raises:
        UsageError: the weights do not fit the architecture.
        EvitNasError: the outputs differ by more than `TOLERANCE`; nothing is written.
    """
    import numpy as np
    import torch

    from evit_nas.network.lively import lively_network
    from evit_nas.network.model import build
    from evit_nas.network.saved import efficientvit, open_saved
    from evit_nas.network.weights import load_weights

    if weights is None:
        model = lively_network(arch, seed)
    elif parted(str(weights)) is not None:
        model = efficientvit(open_saved(str(weights)))
    else:
        model = build(arch, seed).eval()
        load_weights(model, checkpoint(weights))
    # two where the batch is open: torch.export takes a size of 1 for a constant
    images = np.random.default_rng(seed).standard_normal((batch or 2, arch.in_channels, *arch.input_size), np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        with torch.inference_mode():
            expected = model(torch.from_numpy(images))
        write, _ = WRITERS[to]
        run = write(model, torch.from_numpy(images), batch, scratch)
        with torch.inference_mode():
            actual = run(torch.from_numpy(images))
        error = relative_error(actual.numpy(), expected.numpy())
        if not error <= TOLERANCE:  # and not >, which lets NaN pass
            raise EvitNasError(
                f"the exported file differs from the torch network by {error:.1e} (allowed: {TOLERANCE:.0e}); "
                "not written."
            )
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    return error


def checkpoint(weights: Path) -> Path:
    """The file that holds the weights, where a folder may be named."""
    return weights / WEIGHTS if weights.is_dir() else weights


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, relative to the largest expected magnitude."""
    import numpy as np

    return float(np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-12))


def _write_onnx(model: EfficientViT, images: Tensor, batch: int | None, path: Path) -> Inference:
    import torch

    from evit_nas.network.deploy import deploy_weights
    from evit_nas.network.onnx_graph import build_onnx

    path.write_bytes(build_onnx(model.arch, deploy_weights(model), batch=batch).SerializeToString())
    session = open_onnx(path)
    return lambda images: torch.from_numpy(run_onnx(session, images.numpy()))


def open_onnx(path: Path) -> Any:
    """`path` in an ONNX Runtime session on the processor, with as many threads as the torch network beside it."""
    import onnxruntime as ort
    import torch

    from evit_nas.latency.onnx_backend import EXACT_8_BITS

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry(*EXACT_8_BITS)
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_onnx(session: Any, images: np.ndarray) -> np.ndarray:
    """The first output of a session for (B, C, H, W) images."""
    output: np.ndarray = session.run(None, {session.get_inputs()[0].name: images})[0]
    return output


def _write_torchscript(model: EfficientViT, images: Tensor, batch: int | None, path: Path) -> Inference:
    """Traced, for `torch.jit.load` and libtorch."""
    import torch

    with warnings.catch_warnings():  # that TorchScript is no longer developed: whoever asks for it knows
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(_folded(model), images)  # type: ignore[no-untyped-call]
        path.write_bytes(serialised(lambda file: torch.jit.save(traced, file)))
        loaded: Inference = torch.jit.load(path)  # type: ignore[no-untyped-call]
    return loaded


def _write_pt2(model: EfficientViT, images: Tensor, batch: int | None, path: Path) -> Inference:
    """An exported program, for `torch.export.load` and what starts from one."""
    import torch

    shapes = ({0: torch.export.Dim("batch")},) if batch is None else None
    exported = torch.export.export(_folded(model), (images,), dynamic_shapes=shapes)
    path.write_bytes(serialised(lambda file: torch.export.save(exported, file)))
    loaded: Inference = torch.export.load(path).module()
    return loaded


WRITERS = {"onnx": (_write_onnx, ".onnx"), "torchscript": (_write_torchscript, ".ts"), "pt2": (_write_pt2, ".pt2")}
"""How a network is put into a file, which returns what runs it, and the file's suffix."""


def _folded(model: EfficientViT) -> nn.Module:
    from evit_nas.network.deploy import fold

    return fold(model)
