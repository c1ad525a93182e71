"""Whether a table of trained networks speaks for a search space: a predictor knows nothing beyond what it has seen."""

from __future__ import annotations

from evit_nas.accuracy.table import LabelTable, shipped_tables
from evit_nas.arch import ArchConfig
from evit_nas.config import SHIPPED
from evit_nas.space import SearchSpace

MIN_NETWORKS = 40  # in a table that is a default


def default_method(space: SearchSpace, data: str | None) -> str:
    """The accuracy method of a search whose user names none: the predictor if there are data, else what is at hand."""
    if data is not None:
        return "predictor"
    if SHIPPED in shipped_tables() and covers(LabelTable.load(SHIPPED), space):
        return "table"
    return "zero-cost"


def covers(table: LabelTable, space: SearchSpace) -> bool:
    """Whether the extremes of `space` lie within what the networks of `table` span, and there are enough of them."""
    if len(table.networks) < MIN_NETWORKS:
        return False
    spans = [_extent(arch) for arch in table.archs]
    lows, highs = [min(column) for column in zip(*spans, strict=True)], [max(c) for c in zip(*spans, strict=True)]
    smallest, largest = _extent(space.smallest()), _extent(space.largest())
    return all(low <= value for low, value in zip(lows, smallest, strict=True)) and all(
        value <= high for high, value in zip(highs, largest, strict=True)
    )


def _extent(arch: ArchConfig) -> list[float]:
    """What sets a network's size, stage by stage."""
    return [float(value) for stage in arch.stages for value in (stage.width, stage.depth, stage.ffn_ratio)]
