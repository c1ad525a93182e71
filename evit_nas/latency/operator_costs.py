"""What operators cost beside one another on a processor that was measured before: where a fit to another one starts.

Processors differ in what an operator costs, but less than operators do: costs fitted to one rank the networks of
another almost as they are. `operator_costs.json` holds them, fitted by `benchmarks/operator_costs.py` to the networks
of the shipped table of trained networks. Only their ratios mean anything; the preset m0 costs 1 in all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

FILE = Path(__file__).with_name("operator_costs.json")


@cache
def shipped_costs() -> Mapping[str, float]:
    """Kind of operator, as `operators` names them -> cost of one unit of its amount."""
    return MappingProxyType(json.loads(FILE.read_text(encoding="utf-8"))["costs"])


def cost_of(name: str, known: Mapping[str, float]) -> float | None:
    """What a kind of operator costs by the `known` ones; None if nothing like it is among them.

    On a map of an area that is not known it costs what it does on the one nearest in size (as a ratio): the amounts
    grow with the area already, and costs of a unit hardly differ.
    """
    if name in known:
        return known[name]
    area, _, kind = name.partition(" ")
    others = (other.partition(" ") for other in known)
    areas = [int(first) for first, _, rest in others if rest == kind and first.isdigit()]
    if not areas or not area.isdigit():
        return None
    nearest = min(areas, key=lambda other: abs(math.log(other / int(area))))
    return known[f"{nearest} {kind}"]
