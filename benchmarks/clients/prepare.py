"""Makes the networks, files and images that the clients are tried with, on this machine and in one go.

    python benchmarks/clients/prepare.py runs/clients --data PHOTOGRAPHS      # train/CLASS/... and val/CLASS/...

A network of every mixer. They start lively, with gammas and attention biases drawn at random, for on a fresh network
every block is the identity and a wrong graph would not show; then each is trained briefly on some classes of the
photographs, for only a network that knows something has a first class that 8 bits may or may not keep. What was trained
before is not trained again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from evit_nas import __version__
from evit_nas.arch import ArchConfig, StageConfig
from evit_nas.data.images import Images
from evit_nas.data.sources import open_source
from evit_nas.exporting import export, open_onnx, run_onnx
from evit_nas.latency.machine import probe
from evit_nas.network.model import build
from evit_nas.network.saved import efficientvit, open_saved
from evit_nas.runs import installed_versions
from evit_nas.shipping.accuracy import inputs, some
from evit_nas.shipping.quantise import quantise
from evit_nas.trained import WEIGHTS, Trained

CLASSES = 10
CALIBRATION_IMAGES = 256
RECIPE = ("--recipe", "tiny", "--set", "crop_pct=0.875", "--set", "warmup_epochs=0.5")


def small(
    image_size: int | tuple[int, int] = 96, stages: tuple[dict[str, object], ...] = ({}, {}, {}), **shared: object
) -> ArchConfig:
    """A network of three stages with two blocks each; `stages` change them one by one, `shared` all of them."""
    base = {"depth": 2, "heads": 2, "q_kernels": [5, 3], **shared}
    widths = ({"width": 32}, {"width": 64}, {"width": 96})
    configs = tuple(StageConfig.model_validate(base | width | own) for width, own in zip(widths, stages, strict=True))
    return ArchConfig(image_size=image_size, num_classes=CLASSES, stages=configs)


NETWORKS = {
    "m0": ArchConfig.preset("m0").model_copy(update={"image_size": 128, "num_classes": CLASSES}),
    "cascade": small(v_ratio=1.5),
    "windows": small(window=4, v_ratio=0.5),  # maps of 6, 3 and 2 tokens a side: padded, then alone
    "parallel": small(cascade=False, window=3),
    "linear": small(mixer="linear"),
    "none": small(mixer="none"),
    "mixed": small((96, 160), ({"mixer": "linear"}, {"cascade": False, "window": 2}, {})),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="photographs: train/CLASS/... and val/CLASS/...")
    parser.add_argument("--images", type=int, default=200, help="validation images that clients are tried on")
    parser.add_argument("--epochs", type=int, default=3, help="of each network")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="some of them, to go on with the others later")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    data = some_classes(args.data, args.out / "data")
    record = args.out / "prepared.json"
    told = json.loads(record.read_text())["networks"] if record.exists() else {}
    for name in args.networks.split(","):
        training = trained(name, NETWORKS[name], args.out / name, data, args.epochs)
        told[name] = written(training, args.out / name, args.images)
        print(f"{name}: {told[name]}", flush=True)
        told = {each: told[each] for each in NETWORKS if each in told}
        versions = {"evit_nas": __version__} | installed_versions()
        prepared = {"machine": str(probe()), "versions": versions, "images": args.images, "networks": told}
        record.write_text(json.dumps(prepared, indent=1) + "\n")


def some_classes(data: Path, out: Path) -> Path:
    """A data set of links to the first classes of `data`."""
    for part in ("train", "val"):
        (out / part).mkdir(parents=True, exist_ok=True)
        for folder in sorted(path for path in (data / part).iterdir() if path.is_dir())[:CLASSES]:
            link = out / part / folder.name
            if not link.exists():
                link.symlink_to(folder.resolve())
    return out


def lively(arch: ArchConfig) -> dict[str, torch.Tensor]:
    """Weights that no wrong graph computes alike."""
    model, generator = build(arch, seed=0), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bn.weight"):
                parameter.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith(("bn.bias", "bias.table")):
                parameter.normal_(0, 0.5, generator=generator)
    return model.state_dict()


def trained(name: str, arch: ArchConfig, folder: Path, data: Path, epochs: int) -> Path:
    """The folder of a finished training of `arch` from lively weights."""
    folder.mkdir(exist_ok=True)
    config, start = folder / f"{name}.yaml", folder / "lively.safetensors"
    config.write_text(arch.to_yaml())
    save_file(lively(arch), start)
    command = [sys.executable, "-m", "evit_nas", "train", str(config), "--data", str(data), *RECIPE, "--no-ship"]
    command += ["--init", f"{config}={start}", "--set", f"epochs={epochs}", "--out", str(folder / "training")]
    subprocess.run(command, check=True)  # which does nothing where it is done
    return next(path.parent for path in (folder / "training").glob("*/trained.json"))


def written(training: Path, folder: Path, count: int) -> dict[str, object]:
    """Writes the files that clients open, and tells what ONNX Runtime makes of them here."""
    record = Trained.load(training)
    model, source = efficientvit(open_saved(str(training))), open_source(record.data, seed=0)
    (folder / "arch.yaml").write_text(record.arch.to_yaml())
    shutil.copy(training / WEIGHTS, folder / WEIGHTS)

    def prepared(images: Images, most: int) -> tuple[np.ndarray, np.ndarray]:
        pairs = list(inputs(some(images, most, seed=0), record.preprocessing))
        return np.concatenate([image for image, _ in pairs]), np.array([label for _, label in pairs])

    images, labels = prepared(source.val, count)
    calibration, _ = prepared(source.train, CALIBRATION_IMAGES)
    with torch.inference_mode():
        logits = model(torch.from_numpy(images)).numpy()
    np.save(folder / "images.npy", images)
    np.save(folder / "logits.npy", logits)
    for suffix, batch in (("", 1), ("-open", None)):
        graph = folder / f"fp32{suffix}.onnx"
        export("onnx", record.arch, graph, weights=training, batch=batch)
        quantise(graph, calibration[:, None], folder / f"int8{suffix}.onnx")
    export("torchscript", record.arch, folder / "model.ts", weights=training)
    export("pt2", record.arch, folder / "model.pt2", weights=training)
    session = open_onnx(folder / "int8.onnx")
    in_8_bits = np.concatenate([run_onnx(session, image) for image in images[:, None]])
    outputs = {"fp32": logits, "int8": in_8_bits}
    return {name: float(100 * (output.argmax(axis=1) == labels).mean()) for name, output in outputs.items()}


if __name__ == "__main__":
    main()
