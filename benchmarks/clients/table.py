"""Puts what the clients answered into one table, as Markdown.

python benchmarks/clients/table.py runs/clients > docs/results/clients.md
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common import FP32, INT8, TOLERANCE, arguments

Row = dict[str, Any]
REFERENCE = "ONNX Runtime"  # whose 8 bits the others' are compared with
COLUMNS = ("client", "version", "what was called", "fp32", "fp32, open batch", "8 bits", "8 bits, open batch", "limits")

HEAD = """# What the networks were tried with

Printed by the scripts in `benchmarks/clients/`. Networks of every mixer ({networks};
see `prepare.py`), of lively weights trained briefly on ten classes of photographs, are opened by each client and run on
{images} photographs that they were not trained on (what trains the torch network: on 40 of them).

- **fp32**: the largest difference to the torch network, relative to the largest output, over all networks; at most
  {tolerance:.0e} is the same network. Batch 1, then a file with an open batch dimension on batches of 7.
- **8 bits**: the share of the images that keep the first class that the torch network gives them in 32 bits, of the
  worst network to the best. These networks know little ({top1} % right), so their first classes hang by little:
  {reference}'s line is what there is to be had. Linear attention loses most, in every client.

- {machine}
- {versions}
"""


def main() -> None:
    folder = arguments().folder
    prepared = json.loads((folder / "prepared.json").read_text())
    networks = prepared["networks"]
    rights = [network["fp32"] for network in networks.values()]
    told = {
        "networks": ", ".join(networks),
        "images": prepared["images"],
        "tolerance": TOLERANCE,
        "top1": f"{min(rights):.0f} to {max(rights):.0f}",
        "reference": REFERENCE,
        "machine": prepared["machine"],
        "versions": ", ".join(f"{name} {version}" for name, version in prepared["versions"].items()),
    }
    print(HEAD.format(**told))
    print(f"| {' | '.join(COLUMNS)} |")
    print("| --- " * len(COLUMNS) + "|")
    for path in sorted((folder / "answers").glob("*.json"), key=_order):
        answer = json.loads(path.read_text())
        columns = [answer["client"], answer["version"], answer["how"], *cells(answer["rows"], set(networks))]
        print(f"| {' | '.join(columns)} |")
    print()
    print_8_bits(folder, networks)


def print_8_bits(folder: Path, networks: dict[str, Row]) -> None:
    """What every client makes of each network in 8 bits."""
    shares: dict[str, dict[str, float]] = {}
    for path in sorted((folder / "answers").glob("*.json"), key=_order):
        answer = json.loads(path.read_text())
        rows = [row for row in answer["rows"] if row["form"] == INT8[0] and "same" in row]
        if rows:
            shares[f"{answer['client']} {answer['version']}"] = {row["network"]: row["same"] for row in rows}
    print(f"| 8 bits, batch 1 | right in 32 bits | right in 8 bits | {' | '.join(shares)} |")
    print("| --- " * (3 + len(shares)) + "|")
    for name, right in networks.items():
        same = [f"{found[name]:.1f} %" if name in found else "no" for found in shares.values()]
        print(f"| {name} | {right['fp32']:.1f} % | {right['int8']:.1f} % | {' | '.join(same)} |")


def _order(path: Path) -> tuple[bool, str]:
    return not path.name.startswith(f"{REFERENCE} "), path.name.lower()


def cells(rows: list[Row], networks: set[str]) -> list[str]:
    """What stands in the columns from fp32 on."""
    fp32, opened, int8, opened_int8 = ([row for row in rows if row["form"] == form] for form in (*FP32, *INT8))
    figures = [differences(fp32 or rows), differences(opened), shares(int8), shares(opened_int8)]
    return [*figures, "; ".join([*left_out(rows, networks), *limits(rows)])]


def differences(rows: list[Row]) -> str:
    """The largest difference to torch; "done" where there is none to take, "no" where nothing works."""
    found = [row["difference"] for row in rows if "difference" in row]
    if not found:
        return "" if not rows else "done" if any("failed" not in row for row in rows) else "no"
    wrong = [row["network"] for row in rows if row.get("difference", 0) > TOLERANCE]
    return f"{max(found):.0e}{' **wrong**: ' + ', '.join(wrong) if wrong else ''}"


def shares(rows: list[Row]) -> str:
    """Of equal first classes."""
    found = [row["same"] for row in rows if "same" in row]
    if not found:
        return "no" if rows else ""
    return f"{min(found):.0f} to {max(found):.0f} %"


def left_out(rows: list[Row], networks: set[str]) -> list[str]:
    """Networks that a client was not tried with."""
    missing = networks - {row["network"] for row in rows}
    return [f"not tried with {', '.join(sorted(missing))}"] if missing and missing != networks else []


def limits(rows: list[Row]) -> list[str]:
    """The reasons for what was not possible, each with the forms and networks that it stands for."""
    reasons: dict[str, dict[str, set[str]]] = {}
    for row in rows:
        if "failed" in row:
            form = row["form"].removesuffix(".onnx")
            reasons.setdefault(row["failed"], {}).setdefault(form, set()).add(row["network"])
    every = {row["network"] for row in rows}
    found = []
    for reason, forms in reasons.items():
        concerned = set.union(*forms.values())
        names = "all networks" if concerned == every else ", ".join(sorted(concerned))
        found.append(f"{', '.join(forms)} of {names}: `{reason.replace('|', ' ')}`")
    return found


if __name__ == "__main__":
    main()
