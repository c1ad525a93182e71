"""What is in pictures: python predict.py IMAGE...

A line each: picture, class, probability, milliseconds of the inference. What cannot be read is named on standard error,
and the exit code is 1. Needs onnxruntime, numpy and Pillow, and the model.onnx and shipped.json beside it.
"""

# Written into shipped folders as it is: nothing of evit-nas can be imported here.

from __future__ import annotations

import json
import math
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # of ONNX Runtime 1.32 and newer, which asks as it is imported
import onnxruntime

# as evit_nas/data/preprocessing.py has it: a network must be given what it was evaluated on
STRIP = 16  # times its shorter side, that a picture is resized at


def plain(image: Image.Image) -> Image.Image:
    """`image` upright and in RGB, of 16 bits the upper 8, without alpha."""
    image.load()
    with suppress(Exception):  # of damaged EXIF; the pixels have been read
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is not known")
    if image.mode.startswith("I"):  # Pillow's own conversion cuts 16 bits off at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def prepared(image: Image.Image, input_size: Any, mean: Any, std: Any, interpolation: str, crop_pct: float) -> Any:
    """(1, C, H, W) float32: shorter side resized, centre cropped, pixels from 0 to 1, normalised; see shipped.json."""
    channels, height, width = input_size
    longest = STRIP * min(image.size)
    left, top = (max(0, side - longest) // 2 for side in image.size)
    image = image.crop((left, top, left + min(image.width, longest), top + min(image.height, longest)))
    wide, high = (math.floor(side / crop_pct) for side in (width, height))
    # rounded as timm's transform rounds: torchvision's Resize for squares, timm's ResizeKeepRatio else, CenterCrop
    if wide == high:
        size = [int(wide * side / min(image.size)) for side in image.size]
    else:
        size = [round(side / min(image.width / wide, image.height / high)) for side in image.size]
    image = image.convert("L" if channels == 1 else "RGB").resize(size, Image.Resampling[interpolation.upper()])
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    image = image.crop((left, top, left + width, top + height))
    pixels = np.asarray(image, np.float32).reshape(height, width, channels)
    normalised = (pixels / 255 - np.array(mean, np.float32)) / np.array(std, np.float32)
    return normalised.transpose(2, 0, 1)[None]


def opened(path: Path, threads: int) -> Any:
    """The network in `path`, after a first inference, which takes longer."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.x64quantprecision", "1")  # or 8 bits saturate on processors without VNNI
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    session.run(None, {"input": np.zeros(session.get_inputs()[0].shape, np.float32)})
    return session


def answer(session: Any, pixels: Any) -> tuple[Any, float]:
    """(classes,) probabilities, and the milliseconds of the inference."""
    start = time.perf_counter()
    logits = session.run(None, {"input": pixels})[0][0]
    ms = 1e3 * (time.perf_counter() - start)
    odds = np.exp(logits - logits.max())
    return odds / odds.sum(), ms


def main(paths: list[str]) -> int:
    """Answers each picture; 1 if one could not be read."""
    folder, failed = Path(__file__).resolve().parent, 0
    shipped = json.loads((folder / "shipped.json").read_text(encoding="utf-8"))
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr] # whatever pictures are called
    session = opened(folder / "model.onnx", shipped["fp32"]["latency"]["conditions"]["threads"])
    for path in paths:
        try:
            with Image.open(path) as image:
                pixels = prepared(plain(image), **shipped["trained"]["preprocessing"])
        except Exception as error:  # of any kind: Pillow has many
            failed = 1
            print(f"{path}: cannot be read: {error}", file=sys.stderr)
            continue
        odds, ms = answer(session, pixels)
        print(path, shipped["trained"]["classes"][odds.argmax()], f"{odds.max():.4f}", f"{ms:.2f} ms", sep="\t")
    return failed


if __name__ == "__main__":
    if len(sys.argv) == 1:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    sys.exit(main(sys.argv[1:]))
