"""Whether a table of trained networks speaks for a search space: a predictor knows nothing beyond what it has seen."""

from __future__ import annotations

import numpy as np

from evit_nas.accuracy.table import LabelTable, shipped_tables
from evit_nas.arch import ArchConfig
from evit_nas.config import SHIPPED
from evit_nas.space import SearchSpace

MIN_NETWORKS = 30  # in a table that is a default: with fewer a predictor still learns fast
SLACK = 1.1  # by which a space may reach beyond what the networks span


def default_method(space: SearchSpace, data: str | None) -> str:
    """The accuracy method of a search whose user names none.

    With data a predictor is trained on them; else the table of the package speaks if it covers the space, and
    zero-cost proxies otherwise.
    """
    if data is not None:
        return "predictor"
    if SHIPPED in shipped_tables() and covers(LabelTable.load(SHIPPED), space):
        return "table"
    return "zero-cost"


def covers(table: LabelTable, space: SearchSpace) -> bool:
    """Whether the extremes of `space` lie within what the networks of `table` span, and there are enough of them.

    Width, depth and FFN ratio of each stage count; a tenth beyond is still covered.
    """
    if len(table.networks) < MIN_NETWORKS:
        return False
    seen = np.array([_extent(arch) for arch in table.archs])
    low, high = _extent(space.smallest()), _extent(space.largest())
    return bool((seen.min(axis=0) <= low * SLACK).all() and (high <= seen.max(axis=0) * SLACK).all())


def _extent(arch: ArchConfig) -> np.ndarray:
    """(9,) what sets a network's size, stage by stage."""
    return np.array([(stage.width, stage.depth, stage.ffn_ratio) for stage in arch.stages]).ravel()
