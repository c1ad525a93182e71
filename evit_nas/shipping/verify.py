"""Is a shipped folder still what it was, and does it do what its card says?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evit_nas.arch import ArchConfig
from evit_nas.data.images import Source
from evit_nas.data.sources import open_source
from evit_nas.doctor import Finding
from evit_nas.errors import EvitNasError, UsageError, in_a_line
from evit_nas.evaluation.unseen import unseen
from evit_nas.exporting import TOLERANCE, open_onnx, relative_error
from evit_nas.network.saved import efficientvit, open_saved
from evit_nas.shipped import (
    CARD,
    CONFIG,
    FP32,
    INT8,
    PREDICT,
    RECORD,
    SUMS,
    Shipped,
    read_sums,
    sha256,
)
from evit_nas.shipping.accuracy import TORCH, compare, difference, probes, some
from evit_nas.shipping.package import source_of, timm_config
from evit_nas.trained import ARCH, WEIGHTS
from evit_nas.yamlio import read_json

if TYPE_CHECKING:
    from evit_nas.network.model import EfficientViT

INT8_DRIFT = 0.5  # share of the recorded difference to fp32 that another processor's 8-bit arithmetic may add
RECHECK_POINTS = 0.5  # of accuracy, by which the same images may come out worse on another machine

WAY_OUT = "Copy the folder again from where it came, or ship the training again."


def verify(folder: Path, data: str | None = None) -> list[Finding]:
    """Re-examines a shipped folder; a finding that is not ok is fatal and says the way out.

    Args:
        data: as for --data; on its validation images the stated accuracies are checked. None leaves that out.

    Raises:
        UsageError: there is no such folder, or the data cannot be used or have other classes.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder. Give one that evit-nas ship has written.")
    checks: dict[str, Callable[[], str]] = {
        "files": lambda: _files(folder),
        "record": lambda: _record(folder),
        "architecture": lambda: _architecture(folder),
        "weights": lambda: _weights(folder),
        "timm": lambda: _timm(folder),
        "ONNX, fp32": lambda: _fp32(folder),
        "ONNX, 8 bits": lambda: _int8(folder),
    }
    if data is not None:
        source = _source(folder, data)  # now: what is wrong with the data is no fault of the folder
        checks["accuracy"] = lambda: _accuracy(folder, source)
    return [_examined(name, check) for name, check in checks.items()]


def _source(folder: Path, data: str) -> Source:
    try:
        trained = Shipped.load(folder).trained
    except UsageError:  # the checks find that
        return open_source(data)
    return source_of(trained, data)


def _examined(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, check(), ok=True)
    except EvitNasError as error:
        reason = str(error)
    except Exception as error:  # a damaged file surprises its reader in many ways
        reason = in_a_line(error, kind=True, most=300)
    return Finding(name, f"{reason.removesuffix('.')}. {WAY_OUT}", ok=False, fatal=True)


def _files(folder: Path) -> str:
    """Check sums, of the list itself as well: a changed byte in it no longer fits a file or its name."""
    sums = read_sums(folder)
    needed = {WEIGHTS, CONFIG, ARCH, FP32, CARD, RECORD}
    needed |= {name for name in (INT8, PREDICT) if (folder / name).exists()}  # which not every folder has
    faults = [f"{name} is not in {SUMS}" for name in sorted(needed - sums.keys())]
    for name, digest in sums.items():
        if not (folder / name).is_file():
            faults.append(f"{name} is missing")
        elif sha256(folder / name) != digest:
            faults.append(f"{name} has changed")
    if faults:
        raise EvitNasError("; ".join(faults))
    return f"{len(sums)} as they were shipped"


def _record(folder: Path) -> str:
    shipped = Shipped.load(folder)
    found = {name for name in (FP32, INT8) if (folder / name).exists()}
    if found != shipped.graphs.keys():
        raise EvitNasError(f"{RECORD} tells of {', '.join(shipped.graphs)}, the folder has {', '.join(sorted(found))}")
    return f"{shipped.trained.name}, made by evit-nas {shipped.versions['evit_nas']}"


def _architecture(folder: Path) -> str:
    trained = Shipped.load(folder).trained
    if ArchConfig.load(folder / ARCH) != trained.arch:
        raise EvitNasError(f"{ARCH} holds another architecture than {RECORD}")
    if read_json(folder / CONFIG) != timm_config(trained):
        raise EvitNasError(f"{CONFIG} does not describe what {RECORD} does")
    return f"key {trained.arch.key}, the same in {ARCH}, {CONFIG} and {RECORD}"


def _weights(folder: Path) -> str:
    tensors = len(_network(folder).state_dict())
    return f"{tensors} tensors, as the architecture needs them"


def _timm(folder: Path) -> str:
    import timm
    import torch

    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.from_numpy(_probes(folder))
    with torch.inference_mode():
        error = relative_error(loaded(images).numpy(), _network(folder)(images).numpy())
    if not error <= TOLERANCE:
        raise EvitNasError(f"timm {timm.__version__} computes something else: {error:.1e} away")
    return f"timm {timm.__version__} loads it"


def _fp32(folder: Path) -> str:
    error = difference(_network(folder), folder / FP32, _probes(folder))
    if not error <= TOLERANCE:
        raise EvitNasError(f"{FP32} differs from the torch network by {error:.1e} (allowed: {TOLERANCE:.0e})")
    return f"differs from the torch network by {error:.1e}"


def _int8(folder: Path) -> str:
    shipped = Shipped.load(folder)
    if shipped.int8_refusal or shipped.int8 is None:
        return f"not shipped: {shipped.int8_refusal}"
    error, usual = difference(_network(folder), folder / INT8, _probes(folder)), shipped.int8.error
    if not error <= usual * (1 + INT8_DRIFT):
        raise EvitNasError(
            f"{INT8} differs from the torch network by {error:.2f}, not by {usual:.2f} as when it was shipped: is this "
            "processor without 8-bit dot products"
        )
    return f"differs from the torch network by {error:.2f}, when it was shipped by {usual:.2f}"


def _accuracy(folder: Path, source: Source) -> str:
    shipped = Shipped.load(folder)
    trained = shipped.trained
    sessions = {name: open_onnx(folder / name) for name in shipped.graphs}
    taken, _ = unseen(source, [trained])
    images = some(taken, len(taken), trained.seed)  # the first of them that can be read were shipped with
    found = compare(_network(folder), sessions, images, trained.preprocessing, most=shipped.images)
    stated = {TORCH: shipped.top1} | {name: graph.top1 for name, graph in shipped.graphs.items()}
    shown = [f"{name} {top1:.2f} % (stated: {stated[name]:.2f} %)" for name, top1 in found.top1s.items()]
    text = f"on {found.images} images: {', '.join(shown)}"
    if any(stated[name] - top1 > RECHECK_POINTS for name, top1 in found.top1s.items()):
        raise EvitNasError(f"top-1 is lower than stated; {text}")
    return text


def _network(folder: Path) -> EfficientViT:
    return efficientvit(open_saved(str(folder)))


def _probes(folder: Path) -> np.ndarray:
    return probes(Shipped.load(folder).trained.preprocessing)
