"""From an ArchConfig, and weights if there are any, to a file that deploys; checked before it is handed over."""

from __future__ import annotations

import os
from pathlib import Path

from evit_nas.arch import ArchConfig
from evit_nas.errors import EvitNasError

TOLERANCE = 1e-4  # largest output difference to the torch network, relative to the largest output


def export_onnx(
    arch: ArchConfig, path: Path, *, weights: Path | None = None, batch: int | None = 1, seed: int = 0
) -> float:
    """Writes the deploy graph of `arch` and checks it in ONNX Runtime against the torch network.

    Args:
        weights: a checkpoint of this architecture; None exports seeded random weights, good for latency only.
        batch: images per inference, None for a dynamic batch size.
        seed: of the random weights and of the images that are compared.

    Returns:
        The largest output difference, relative to the largest output.

    Raises:
        UsageError: the weights do not fit the architecture.
        EvitNasError: the outputs differ by more than `TOLERANCE`; nothing is written.
    """
    import numpy as np
    import onnxruntime as ort
    import torch

    from evit_nas.network.deploy import deploy_weights
    from evit_nas.network.model import build
    from evit_nas.network.onnx_graph import build_onnx
    from evit_nas.network.weights import load_weights

    model = build(arch, seed)
    if weights is not None:
        load_weights(model, weights)
    model.eval()
    graph = build_onnx(arch, deploy_weights(model), batch=batch).SerializeToString()

    images = np.random.default_rng(seed).standard_normal((batch or 2, arch.in_channels, *arch.input_size))
    images = images.astype(np.float32)
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).numpy()
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    actual = session.run(None, {session.get_inputs()[0].name: images})[0]
    error = float(np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-12))
    if not error <= TOLERANCE:
        raise EvitNasError(
            f"the ONNX graph differs from the torch network by {error:.1e} (allowed: {TOLERANCE:.0e}); not written."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_bytes(graph)
    scratch.replace(path)
    return error
