"""What every client here is asked, and how its answers are compared.

Needs numpy alone, for each client has an environment of its own.

`prepare.py` leaves a folder for each network in the folder that all scripts take:

arch.yaml, model.safetensors    the network as it was trained
images.npy                      (N, C, H, W) photographs, prepared as the network takes them
logits.npy                      (N, classes) of the torch network
fp32.onnx, int8.onnx            what `evit-nas ship` writes, batch 1
fp32-open.onnx, int8-open.onnx  the same with an open batch dimension
model.ts, model.pt2             TorchScript and an exported program, batch 1

A client computes the same network if its largest difference to torch, relative to the largest output, is at most 1e-4.
Of 8 bits that asks too much: each runtime rounds in its own places. There it counts for how many of the images the
network's first class stays what torch says in 32 bits, beside what ONNX Runtime makes of the same file.
"""

from __future__ import annotations

import argparse
import json
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np

FP32, INT8 = ("fp32.onnx", "fp32-open.onnx"), ("int8.onnx", "int8-open.onnx")
TOLERANCE = 1e-4
OPEN_BATCH = 7  # no divisor of 200: the last batch is another size
REASON = 160  # characters of a library's message

Run = Callable[[np.ndarray], np.ndarray]  # (B, C, H, W) images to (B, classes) logits


def answer(
    client: str,
    version: str,
    load: Callable[[Path], Run],
    forms: tuple[str, ...] = (*FP32, *INT8),
    how: str = "",
) -> None:
    """Has a client run every network in every form, prints what came of it and keeps it for `table.py`.

    Args:
        client, version: as the table names them.
        load: opens a file; what it returns runs images.
        forms: files of each network.
        how: what was called, for the table.
    """
    folder = arguments().folder
    rows = []
    for network in networks():
        images, expected = (np.load(folder / network / f"{name}.npy") for name in ("images", "logits"))
        for form in forms:
            rows.append({"network": network, "form": form, **outcome(load, folder / network / form, images, expected)})
            print(" ".join(str(value) for value in rows[-1].values()), flush=True)
            keep(client, version, how, rows)


def arguments() -> argparse.Namespace:
    """The folder that `prepare.py` has filled, and which of its networks are wanted."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--networks", help="some of them, where the answers for the others are there already")
    return parser.parse_args()


def networks() -> list[str]:
    """Names of the networks to try."""
    asked = arguments()
    found = list(json.loads((asked.folder / "prepared.json").read_text())["networks"])
    return asked.networks.split(",") if asked.networks else found


def outcome(load: Callable[[Path], Run], path: Path, images: np.ndarray, expected: np.ndarray) -> dict[str, object]:
    """Largest relative difference and share of equal first classes in percent, or the client's reason for none."""
    batch = OPEN_BATCH if "-open" in path.name else 1
    try:
        run = load(path)
        chunks = [images[start : start + batch] for start in range(0, len(images), batch)]
        logits = np.concatenate([np.asarray(run(chunk)).reshape(len(chunk), -1) for chunk in chunks])
        return compared(logits, expected)
    except Exception as error:  # each client fails in its own way
        traceback.print_exc(limit=-3)
        return {"failed": reason(error)}


def compared(logits: np.ndarray, expected: np.ndarray) -> dict[str, object]:
    """Of (N, ...) outputs; "same" is None where they are no logits."""
    difference = float(np.abs(logits - expected).max() / np.abs(expected).max())
    same = float(100 * (logits.argmax(axis=1) == expected.argmax(axis=1)).mean()) if expected.ndim == 2 else None
    return {"difference": difference, "same": same}


def reason(error: BaseException) -> str:
    """A client's message in one line; of a long one its beginning and its end, where compilers have the cause."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= REASON else f"{text[: REASON // 2]} ... {text[-REASON // 2 :]}"


def keep(client: str, version: str, how: str, rows: list[dict[str, object]]) -> None:
    """Leaves what a client answered in the folder, for `table.py`, in place of earlier rows of the same "network"."""
    path = arguments().folder / "answers" / f"{client} {version}.json"
    path.parent.mkdir(exist_ok=True)
    before = json.loads(path.read_text())["rows"] if path.exists() else []
    new = {row["network"] for row in rows}
    rows = [row for row in before if row["network"] not in new] + rows
    path.write_text(json.dumps({"client": client, "version": version, "how": how, "rows": rows}, indent=1) + "\n")
