"""What is a start from a pruned network worth? Against the first channels of the same network, and against scratch.

    evit-nas train m0 --data fashion-mnist --recipe short --image-size 64
    OMP_NUM_THREADS=1 python benchmarks/pruned_start.py --network runs/train/m0-... --data fashion-mnist --to small.yaml

The network is cut to the architecture `--to` by the importance of its channels, on the images that it was trained on.
All three starts are then trained with one recipe, the same seeds and the same few images; those, and the images that
accuracy is measured on, are a class-balanced choice that is written to `--out` as a folder. Prints top-1 before and
after. The same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from evit_nas.analysis import analyze
from evit_nas.analysis.pruning import write_start
from evit_nas.arch import PRESETS, ArchConfig
from evit_nas.data.sources import open_source
from evit_nas.evaluation import evaluate
from evit_nas.latency.machine import probe
from evit_nas.network.cost import cost
from evit_nas.network.saved import efficientvit, open_saved
from evit_nas.training.network import train
from evit_nas.training.plan import Chosen, How, begin, plan
from evit_nas.training.recipe import load_recipe
from evit_nas.training.status import Silence


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", required=True, help="a trained network")
    parser.add_argument("--data", required=True, help="the images that it was trained on")
    parser.add_argument("--to", required=True, help="a preset or a YAML file")
    parser.add_argument("--images", type=int, default=3000, help="to train on")
    parser.add_argument("--val-images", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--out", type=Path, default=Path("runs/pruned-start"))
    args = parser.parse_args()
    data = args.out / "images"
    if not data.is_dir():
        write_images(args.data, data, args.images, args.val_images)
    network, weights = args.network, args.out / "pruned" / "model.safetensors"
    if not weights.is_file():
        wanted = ArchConfig.preset(args.to) if args.to in PRESETS else ArchConfig.load(args.to)
        found = analyze(network, args.data, note=print)
        assert found.arch is not None  # or it is no EfficientViT, which has been refused
        write_start(network, wanted, found.channels, found.arch.image_size, weights.parent)
    large, small = (efficientvit(open_saved(str(path))).arch for path in (network, weights))
    print(f"machine: {probe()}\nsource: {described(large)}\npruned: {described(small)}", flush=True)
    before = evaluate([network, str(weights)], str(data), like=network, workers=0)
    print("before training: " + ", ".join(f"{one.path} {one.top1:.2f} ± {one.top1_error:.2f} %" for one in before))

    print(f"after {args.epochs} epochs of {args.images} images:\nstart | top-1 % by seed | mean")
    recipe = load_recipe("short", {"epochs": args.epochs, "warmup_epochs": 1})
    for start, init in {"pruned": str(weights), "first channels": network, "scratch": "scratch"}.items():
        out = args.out / start.replace(" ", "-")
        how = How(str(data), "short", recipe, init=init, seeds=args.seeds, out=out)
        plans = plan([Chosen("small", small)], how)
        begin(plans, "benchmarks/pruned_start.py", resume=True)
        top1 = [train(folder, Silence()).top1 for folder, _ in plans]
        print(f"{start} | {', '.join(f'{each:.2f}' for each in top1)} | {np.mean(top1):.2f}", flush=True)


def write_images(data: str, folder: Path, train_images: int, val_images: int) -> None:
    """A class-balanced choice of both splits, as folders of images."""
    source = open_source(data, 0)
    scratch = folder.with_name("images.partial")
    for split, images, count in (("train", source.train, train_images), ("val", source.val, val_images)):
        rng = np.random.default_rng(0)
        for label, name in enumerate(source.classes):
            place = scratch / split / name.replace("/", "-")
            place.mkdir(parents=True, exist_ok=True)
            for index in rng.permutation(np.flatnonzero(images.labels == label))[: count // len(source.classes)]:
                images.picture(int(index)).save(place / f"{index}.png")
    scratch.rename(folder)


def described(arch: ArchConfig) -> str:
    """Stages and size in a line."""
    stages = ", ".join(f"{s.width}x{s.depth} qk {s.qk_dim} ffn {s.ffn_ratio:g}" for s in arch.stages)
    return f"{stages}: {cost(arch).params / 1e6:.2f} M parameters, {cost(arch).macs / 1e6:.1f} M MACs"


if __name__ == "__main__":
    main()
