"""What trained weights are worth to a few photographs: those of another network and other classes, against scratch.

    python benchmarks/transfer.py --others OTHERS --data PHOTOS --network benchmarks/made/ten-60m.yaml --out FOLDER

Trains m1 on the photographs OTHERS, whose classes are none of PHOTOS. Then the network learns so many of PHOTOS (the
first of each class), by `--recipe auto`, once from scratch and once from m1's weights, as far as the two have parts in
common. Prints validation accuracies as they come. The same command goes on where it was stopped; `--seeds 0` and
`--seeds 1` may run side by side once m1 is trained, which `--seeds` alone does.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import evit_nas
from evit_nas.data.folder import SUFFIXES
from evit_nas.data.look import look
from evit_nas.data.sources import open_source
from evit_nas.latency.machine import probe
from evit_nas.stats import binomial_error
from evit_nas.trained import Trained


def part(data: Path, images: int, out: Path) -> Path:
    """A folder with the first `images` training photographs, as many of each class, and all validation ones."""
    classes = sorted(folder.name for folder in (data / "train").iterdir())
    for name in classes:
        folder = out / "train" / name
        folder.mkdir(parents=True, exist_ok=True)
        pictures = sorted(path for path in (data / "train" / name).iterdir() if path.suffix.lower() in SUFFIXES)
        for picture in pictures[: images // len(classes)]:
            if not (folder / picture.name).is_symlink():
                (folder / picture.name).symlink_to(picture.resolve())
    if not (out / "val").is_symlink():
        (out / "val").symlink_to((data / "val").resolve())
    return out


def trained(network: str | Path, data: Path, out: Path, args: argparse.Namespace, **words: Any) -> Trained:
    """One training to its end."""
    words |= {"image_size": args.image_size, "workers": args.workers, "ship": False, "resume": True, "out": out}
    [found] = evit_nas.train(network, data=data, **words)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--others", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="with train/CLASS and val/CLASS")
    parser.add_argument("--network", type=Path, required=True)
    parser.add_argument("--source", default="m1", help="whose weights")
    parser.add_argument("--epochs", type=int, default=20, help="of the source")
    parser.add_argument("--images", type=int, nargs="+", default=[600, 2400])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--workers", type=int, default=1, help="processes that load images")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    print(f"machine: {probe()}\n{look(open_source(str(args.others), seed=0))}", flush=True)
    source = trained(args.source, args.others, args.out / "source", args, epochs=args.epochs)
    print(f"{args.source}: {source.top1:.2f} % of those classes after {args.epochs} epochs", flush=True)
    [folder] = (args.out / "source").iterdir()
    for images in args.images:
        data = part(args.data, images, args.out / f"photographs-{images}")
        for seed in args.seeds:
            for init in ("scratch", folder):
                name = "scratch" if init == "scratch" else "carried"
                found = trained(args.network, data, args.out / f"{images}-{name}", args, init=init, seed=seed)
                error = binomial_error(found.top1, found.validation_images)
                epochs = found.recipe["epochs"]
                print(
                    f"{images:5} {name:8} seed {seed} {found.top1:6.2f} ± {error:.2f} % {epochs:4} epochs", flush=True
                )


if __name__ == "__main__":
    main()
