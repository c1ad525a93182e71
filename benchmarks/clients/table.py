"""Puts what the clients answered into one table, as Markdown.

python benchmarks/clients/table.py runs/clients > benchmarks/results/clients.md
"""

from __future__ import annotations

import json
from typing import Any

from common import FP32, INT8, TOLERANCE, arguments

Row = dict[str, Any]
REFERENCE = "ONNX Runtime"  # whose 8 bits the others' are compared with

HEAD = """# What the networks were tried with

Printed by the scripts in `benchmarks/clients/`; see there for how each client is called. A network of every mixer, of lively
weights trained briefly on ten classes of photographs, is opened by each client and run on {images} photographs that it was not
trained on (clients of the torch network: on 40 of them).

- **fp32**: the largest difference to the torch network over all networks, relative to the largest output; at most
  {tolerance:.0e} is the same network. Batch 1, then a file with an open batch dimension on batches of 7.
- **8 bits**: the share of the images that keep the first class that the torch network gives them in 32 bits, of the worst
  network to the best. These networks know little ({top1} % right), so their first classes hang by little, and {reference}'s
  line is what there is to be had.

- {machine}
- {versions}
"""


def main() -> None:
    folder = arguments().folder
    prepared = json.loads((folder / "prepared.json").read_text())
    answers = [json.loads(path.read_text()) for path in sorted((folder / "answers").glob("*.json"), key=_order)]
    rights = [network["fp32"] for network in prepared["networks"].values()]
    told = {
        "images": prepared["images"],
        "tolerance": TOLERANCE,
        "top1": f"{min(rights):.0f} to {max(rights):.0f}",
        "reference": REFERENCE,
        "machine": prepared["machine"],
        "versions": ", ".join(f"{name} {version}" for name, version in prepared["versions"].items()),
    }
    print(HEAD.format(**told))
    print("| client | version | what was called | fp32 | fp32, open batch | 8 bits | 8 bits, open batch | limits |")
    print("| --- " * 8 + "|")
    for answer in answers:
        print(
            f"| {answer['client']} | {answer['version']} | {answer['how']} | {' | '.join(cells(answer['rows'], prepared['networks']))} |"
        )


def _order(path: Any) -> tuple[bool, str]:
    return (not path.name.startswith(f"{REFERENCE} "), path.name.lower())


def cells(rows: list[Row], networks: dict[str, Row]) -> list[str]:
    """What is in the columns of fp32, 8 bits and limits."""
    fp32, opened, int8, opened_int8 = ([row for row in rows if row["form"] == form] for form in (*FP32, *INT8))
    if not fp32:
        fp32 = rows
    return [
        differences(fp32),
        differences(opened),
        shares(int8),
        shares(opened_int8),
        left_out(rows, networks) + limits(rows),
    ]


def differences(rows: list[Row]) -> str:
    if not rows:
        return ""
    found = [row["difference"] for row in rows if "difference" in row]
    worst = f"{max(found):.0e}" if found else ""
    wrong = [row["network"] for row in rows if row.get("difference", 0) > TOLERANCE]
    done = worst or ("done" if any("failed" not in row for row in rows) else "")
    return f"{done}{' **wrong**: ' + ', '.join(wrong) if wrong else ''}" or "no"


def shares(rows: list[Row]) -> str:
    found = [row["same"] for row in rows if "same" in row]
    if not rows:
        return ""
    return f"{min(found):.0f} to {max(found):.0f} %" if found else "no"


def left_out(rows: list[Row], networks: dict[str, Row]) -> str:
    """Networks that a client was not tried with."""
    missing = networks.keys() - {row["network"] for row in rows}
    return f"not tried with {', '.join(sorted(missing))}; " if missing and rows[0]["network"] else ""


def limits(rows: list[Row]) -> str:
    """The reasons for what was not possible, each with the forms and networks that it stands for."""
    reasons: dict[str, dict[str, set[str]]] = {}
    for row in rows:
        if "failed" in row:
            reasons.setdefault(row["failed"], {}).setdefault(row["form"].removesuffix(".onnx"), set()).add(
                row["network"]
            )
    every = {row["network"] for row in rows}
    return "; ".join(
        f"{', '.join(forms)} ({_of(set.union(*forms.values()), every)}): `{reason.replace('|', ' ')}`"
        for reason, forms in reasons.items()
    )


def _of(networks: set[str], every: set[str]) -> str:
    return "all" if networks == every else ", ".join(sorted(networks))


if __name__ == "__main__":
    main()
