"""What can be measured, as it travels to another process."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from evit_nas.arch import ArchConfig
from evit_nas.caches import cache_folder
from evit_nas.errors import UsageError
from evit_nas.files import write_whole, writing
from evit_nas.latency.runtimes import RUNTIMES
from evit_nas.latency.values import Measurable, TimmModel


def resolved(network: Measurable, family: str) -> Measurable:
    """`network` as the runtime called `family` takes it: a timm model becomes an ONNX file where that needs one.

    Raises:
        UsageError: timm has no such network.
        MeasurementError: it cannot be exported.
    """
    runtime = RUNTIMES.get(family)
    if isinstance(network, TimmModel) and not (runtime and runtime.takes_timm):
        from evit_nas.network.timm_models import timm_onnx

        return timm_onnx(network.name, network.image_size)
    return network


def sized(path: Path, image_size: int | None) -> Path:
    """An ONNX file whose images have a size: `path`, or, where that leaves height and width open, a copy in the cache
    folder in which both are `image_size` pixels.

    A file that cannot be read is returned as it is: the runtime says why.

    Raises:
        UsageError: they are open and `image_size` is None; they are fixed to another size; more than the batch, height
            and width is open; or the cache folder cannot be written.
    """
    import onnx
    from onnxruntime.tools.onnx_model_utils import make_dim_param_fixed

    try:
        model = onnx.load(path)
    except Exception:  # whatever onnx and protobuf raise
        return path
    constants = {tensor.name for tensor in model.graph.initializer}  # old files list them among the inputs
    inputs = [entry for entry in model.graph.input if entry.name not in constants]
    copied = False
    for entry in inputs:
        dims = entry.type.tensor_type.shape.dim
        shape = " x ".join(str(dim.dim_value) if dim.dim_value > 0 else dim.dim_param or "?" for dim in dims)
        chosen = [axis for axis, dim in enumerate(dims) if axis and dim.dim_value < 1]  # 0 is a name, or nothing
        if not chosen:
            continue
        if len(dims) != 4 or chosen not in ([2, 3], [1, 2]):  # (B, C, H, W) or (B, H, W, C)
            raise UsageError(
                f"{path}: the input '{entry.name}' is {shape}; only the batch, and height with width, may be open. "
                "Export it with the rest fixed."
            )
        if image_size is None:
            raise UsageError(
                f"{path}: the input '{entry.name}' is {shape}; say for which height and width with --image-size, for "
                "example --image-size 224."
            )
        for axis in chosen:
            if dims[axis].dim_param:
                make_dim_param_fixed(model.graph, dims[axis].dim_param, image_size)  # inside the graph too
            dims[axis].dim_value = image_size
        copied = True
    if copied:
        return _kept(model.SerializeToString(), f"{path.stem[:64]}-{image_size}")
    sides = [[dim.dim_value for dim in entry.type.tensor_type.shape.dim] for entry in inputs]
    if image_size is not None and not any([image_size] * 2 in (each[2:], each[1:3]) for each in sides):  # NCHW, NHWC
        fixed = " and ".join(" x ".join(map(str, each[1:])) for each in sides)
        raise UsageError(
            f"--image-size {image_size} cannot change {path}: its input is fixed to {fixed}; export it again."
        )
    return path


def _kept(graph: bytes, name: str) -> Path:
    path = cache_folder() / "onnx" / f"{name}-{hashlib.sha256(graph).hexdigest()[:12]}.onnx"
    with writing(path.parent, " Set XDG_CACHE_HOME to a folder that can be written."):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_whole(path, lambda scratch: scratch.write_bytes(graph))
    return path


def encoded(network: Measurable) -> dict[str, Any]:
    """Plain values that `decoded` turns back."""
    if isinstance(network, ArchConfig):
        return {"arch": network.model_dump(mode="json")}
    if isinstance(network, Path):
        return {"onnx": str(network.absolute())}  # the other process may be in another folder
    return {"timm": network.name, "image_size": network.image_size}


def decoded(values: dict[str, Any]) -> Measurable:
    """The network that `encoded` wrote.

    Raises:
        KeyError: it is none.
        ValueError: the architecture is not valid.
    """
    if "onnx" in values:
        return Path(values["onnx"])
    if "timm" in values:
        return TimmModel(values["timm"], values.get("image_size"))
    return ArchConfig.model_validate(values["arch"])
