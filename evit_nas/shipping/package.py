"""From a finished training to a folder that deploys: written beside its place, checked, and only then named."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evit_nas import __version__
from evit_nas.config import Conditions
from evit_nas.data.images import Source
from evit_nas.data.sources import open_source
from evit_nas.errors import EvitNasError, MeasurementError, UsageError, first_few
from evit_nas.exporting import TOLERANCE, open_onnx
from evit_nas.latency import STRICT, Steady, open_device
from evit_nas.network.cost import cost
from evit_nas.network.saved import efficientvit, open_saved
from evit_nas.runs import installed_versions
from evit_nas.shipped import CARD, CONFIG, FP32, INT8, PREDICT, RECORD, Shipped, ShippedGraph, write_sums
from evit_nas.shipping.accuracy import TORCH, Comparison, compare, difference, inputs, probes, some
from evit_nas.shipping.card import card
from evit_nas.shipping.quantise import quantise, refusal
from evit_nas.trained import ARCH, WEIGHTS, Trained

if TYPE_CHECKING:
    import numpy as np

    from evit_nas.data.preprocessing import Preprocessing
    from evit_nas.network.model import EfficientViT

CALIBRATION_IMAGES = 256  # 16 to 1024 of Fashion-MNIST made no difference beyond 0.3 points
VALIDATION_IMAGES = 5000  # the difference of two accuracies on them has a standard error of about 0.2 points


def ship(
    training: Path,
    out: Path,
    *,
    conditions: Conditions | None = None,
    tolerance: float = 1.0,
    images: int = VALIDATION_IMAGES,
    calibration_images: int = CALIBRATION_IMAGES,
    anyway: bool = False,
    command: str = "",
    note: Callable[[str], None] = lambda message: None,
) -> Shipped:
    """Writes the network of the finished training in `training` to the new folder `out`; see shipped.py.

    Args:
        conditions: what latency is measured under; None for one thread of this processor.
        tolerance: points of top-1 that the 8-bit graph may lose.
        images: validation images that accuracies are taken on, at most.
        calibration_images: training images that the 8-bit ranges are taken from, at most.
        anyway: whether a network is shipped that its own training calls worth nothing.
        note: is told what is done.

    Raises:
        UsageError: `training` or its data cannot be used, `out` exists, or the device quantises by itself.
        EvitNasError: the network is worth nothing, or the ONNX file does not compute what it does; nothing is written.
        MeasurementError: latency cannot be measured; nothing is written.
    """
    conditions = conditions or Conditions()
    if conditions.precision == "int8":
        raise UsageError(f"device '{conditions.device}' quantises by itself; measure both files on one such as cpu.")
    trained = Trained.load(training)
    if trained.no_good and not anyway:
        raise EvitNasError(f"{training}: {trained.no_good}; to ship it all the same add --anyway.")
    source = source_of(trained, trained.data)
    preprocessing = trained.preprocessing
    with _new_folder(out) as folder:
        model = efficientvit(open_saved(str(training)))
        _write_network(folder, trained, model)
        calibration, skipped = some(source.train, calibration_images, trained.seed), list[str]()
        note(f"calibrating 8 bits on {len(calibration)} training images")
        refused = _quantised(folder, inputs(calibration, preprocessing, skipped.append))
        calibrated = len(calibration) - len(skipped)
        paths = [path for path in (folder / FP32, folder / INT8) if path.exists()]
        validation = some(source.val, images, trained.seed)
        note(f"comparing on {len(validation)} of {len(source.val)} validation images")
        sessions = {path.name: open_onnx(path) for path in paths}
        found = compare(model, sessions, validation, preprocessing, skipped.append)
        _check_equal(found)
        if skipped:
            note(f"{source.name}: skipped {len(skipped)} unreadable of these images: {first_few(skipped)}")
        note(f"measuring {' and '.join(path.name for path in paths)} on {conditions}")
        graphs = _graphs(paths, found, model, preprocessing, conditions)
        if INT8 in graphs and (refused := refusal(graphs[FP32], graphs[INT8], tolerance)):
            (folder / INT8).unlink()
        size = cost(trained.arch)
        shipped = Shipped(
            trained=trained,
            params=size.params,
            macs=size.macs,
            images=found.images,
            top1=found.top1s[TORCH],
            fp32=graphs[FP32],
            int8=graphs.get(INT8),
            int8_refusal=refused,
            calibration_images=calibrated,
            tolerance=tolerance,
            command=command,
            versions={"evit_nas": __version__} | installed_versions(),
        )
        (folder / RECORD).write_text(shipped.model_dump_json(indent=1) + "\n", encoding="utf-8")
        (folder / CARD).write_text(card(shipped), encoding="utf-8")
        shutil.copyfile(Path(__file__).with_name(PREDICT), folder / PREDICT)
        write_sums(folder)
    return shipped


def _quantised(folder: Path, calibration: Iterable[tuple[np.ndarray, int]]) -> str:
    """Writes the graph in 8 bits beside the other one; returns why it could not be made, or nothing."""
    try:
        quantise(folder / FP32, (image for image, _ in calibration), folder / INT8)
    except MeasurementError as error:
        return str(error)
    return ""


def _graphs(
    paths: Sequence[Path], found: Comparison, model: EfficientViT, preprocessing: Preprocessing, conditions: Conditions
) -> dict[str, ShippedGraph]:
    """What is known of each file; all are measured in one session of the device, for `refusal` compares latencies."""
    with Steady(open_device(conditions)) as device:
        return {
            path.name: ShippedGraph(
                top1=found.top1s[path.name],
                latency=device.measure(path, STRICT)[0],
                error=difference(model, path, probes(preprocessing)),
                megabytes=path.stat().st_size / 1e6,
            )
            for path in paths
        }


def timm_config(trained: Trained) -> dict[str, Any]:
    """What config.json holds, in timm's layout."""
    from evit_nas.timm_entry import LAYERS, NAME

    arch = trained.arch
    return {
        "architecture": NAME,
        "num_classes": arch.num_classes,
        "num_features": arch.stages[-1].width,
        "global_pool": "avg",
        "label_names": list(trained.classes),
        "model_args": {"arch": arch.model_dump(mode="json")},
        "pretrained_cfg": trained.preprocessing.timm_config() | LAYERS | {"num_classes": arch.num_classes},
    }


def source_of(trained: Trained, data: str) -> Source:
    """The data set that `data` names, which must have the classes that the network was trained on.

    Raises:
        UsageError: it has others, or cannot be used.
    """
    source = open_source(data)
    if source.classes != trained.classes:
        wanted, got = (f"{first_few(names)} ({len(names)})" for names in (trained.classes, source.classes))
        raise UsageError(f"{data} must have the classes that the network was trained on: {wanted}, got {got}.")
    return source


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its name when the block ends well, and is removed otherwise."""
    if out.exists():
        raise UsageError(f"{out} exists: shipping writes a new folder. Give another one, or remove it first.")
    scratch = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        scratch.mkdir(parents=True)
        yield scratch
        scratch.rename(out)
    except OSError as error:
        raise EvitNasError(f"{error.filename or out}: {error.strerror}. Nothing was written to {out}.") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _check_equal(found: Comparison) -> None:
    """The error decides, not the top-1: two classes as likely as each other change places within any tolerance."""
    error = found.errors[FP32]
    if not error <= TOLERANCE:
        raise EvitNasError(
            f"the ONNX graph differs from the torch network by {error:.1e} on real images (allowed: {TOLERANCE:.0e}); "
            "nothing is written."
        )


def _write_network(folder: Path, trained: Trained, model: EfficientViT) -> None:
    """The files that hold the network itself."""
    from safetensors.torch import save

    from evit_nas.network.deploy import deploy_weights
    from evit_nas.network.onnx_graph import build_onnx

    (folder / WEIGHTS).write_bytes(save(model.state_dict(), metadata={"format": "pt"}))  # transformers asks for it
    (folder / CONFIG).write_text(json.dumps(timm_config(trained), indent=1) + "\n", encoding="utf-8")
    (folder / ARCH).write_text(
        trained.arch.to_yaml(f"EfficientViT {trained.name}; key {trained.arch.key}"), encoding="utf-8"
    )
    (folder / FP32).write_bytes(build_onnx(trained.arch, deploy_weights(model)).SerializeToString())
