"""timm's networks as ONNX files: what a user might pick instead of an EfficientViT, measured like one.

Weights are random (nothing is downloaded): latency and memory do not depend on them, and accuracies of other networks
are quoted, not computed.
"""

from __future__ import annotations

import difflib
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evit_nas.caches import cache_folder
from evit_nas.errors import MeasurementError, UsageError, in_a_line
from evit_nas.files import write_whole, writing
from evit_nas.network.onnx_graph import OPSET

if TYPE_CHECKING:
    from torch import nn


def timm_onnx(name: str, image_size: int | None = None) -> Path:
    """The deploy graph of timm's network `name`, "input" (B, C, H, W) to "logits" (B, classes), in the cache folder.

    Parallel branches and BatchNorms are merged. The batch is open; in a network that cannot be traced so, it is fixed
    to 1. Exported once per name, size and versions of timm and torch, in seconds.

    Args:
        name: as timm has it, with or without a tag.
        image_size: input side in pixels; None takes the one the network is trained at, not timm's larger test size.

    Raises:
        UsageError: timm has no such network, or the cache folder cannot be written.
        MeasurementError: the network cannot be built at this size, or not exported.
    """
    versions = f"timm{version('timm')}-torch{version('torch')}"
    path = _cache() / f"{name}-{image_size or 'own'}-{versions}.onnx"
    if path.exists():
        return path
    model, input_size = timm_network(name, image_size)
    with writing(path.parent, " Set XDG_CACHE_HOME to a folder that can be written."):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda scratch: _export(name, model, input_size, scratch))
    return path


def timm_network(name: str, image_size: int | None = None) -> tuple[nn.Module, tuple[int, int, int]]:
    """timm's network with seeded random weights, merged for inference, and its input's (channels, height, width).

    Raises:
        UsageError: timm has no such network.
        MeasurementError: it cannot be built at this size.
    """
    import timm
    from timm.models import reparameterize_model

    from evit_nas.network.layers import seeded

    _check_name(name)
    config = timm.get_pretrained_cfg(name)
    assert config is not None  # each of the listed networks has one
    channels, height, width = config.input_size
    options: dict[str, Any] = {}
    if image_size is not None:
        height = width = image_size
        options = {"img_size": image_size} if config.fixed_input_size else {}  # others may refuse the argument
    try:
        with seeded(0):
            model = timm.create_model(name, pretrained=False, **options)
    except Exception as error:  # timm's networks refuse sizes with errors of every type
        raise MeasurementError(f"timm cannot build {name} for {height} x {width} pixels: {error}") from error
    _revive(model)
    return reparameterize_model(model.eval(), inplace=True), (channels, height, width)


def _revive(model: nn.Module) -> None:
    """Sets zero gammas to 1: folded into zero weights, which the exporter shares, they would shrink the network."""
    from torch import nn

    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.affine and not module.weight.any():
            nn.init.ones_(module.weight)


def _export(name: str, model: nn.Module, input_size: tuple[int, int, int], path: Path) -> None:
    failure = ""
    for batch_axis in ({0: "batch"}, {}):
        try:
            _trace(model, input_size, path, batch_axis)
            _check_runs(path, input_size, batches=(1, 2) if batch_axis else (1,))
            return
        except Exception as error:  # of the exporter or of ONNX Runtime, which have many
            failure = in_a_line(error, kind=True, most=300)
    raise MeasurementError(f"timm's {name} cannot be exported to ONNX: {failure}")


def _trace(model: nn.Module, input_size: tuple[int, int, int], path: Path, batch_axis: dict[int, str]) -> None:
    """Writes ONNX with the TorchScript exporter: a few times faster than the newer one, and the same nodes remain."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (torch.zeros(1, *input_size),),
            path,
            dynamo=False,
            opset_version=OPSET,
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": batch_axis, "logits": batch_axis},
        )


def _check_runs(path: Path, input_size: tuple[int, int, int], batches: tuple[int, ...]) -> None:
    """Runs the file; a batch that the tracer took for a constant shows as an error or as wrong logits."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4  # only fatal: `_export` expects failures, and tries a fixed batch
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).standard_normal((max(batches), *input_size), np.float32)
    alone: np.ndarray[Any, Any] = session.run(None, {"input": images[:1]})[0]
    for batch in batches:
        logits = session.run(None, {"input": images[:batch]})[0]
        if len(logits) != batch or not np.allclose(logits[:1], alone, rtol=1e-3, atol=1e-4):
            raise ValueError(f"its logits depend on the batch size {batch}")


def _check_name(name: str) -> None:
    import timm

    known = {*timm.list_models(), *timm.list_models(include_tags=True)}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        raise UsageError(f"timm has no network called '{name}'. The nearest are: {', '.join(near) or 'none'}.")


def _cache() -> Path:
    return cache_folder() / "timm"
