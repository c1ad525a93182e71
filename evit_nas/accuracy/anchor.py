"""A rough ImageNet top-1 for a candidate, anchored at the published figures of m0 to m5. An estimate, no measurement.

The top-1 error of the six is close to a power law of MACs and parameters. A candidate is put on that line; where it
departs from what the six have in common (cascaded softmax attention, FFN ratio 2, ...), nothing published says what
such a choice is worth at its place, and the interval grows by what the paper's ablations typically cost. So this says
which class of accuracy to expect after the paper's recipe (300 epochs), and does not rank candidates of one budget.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from evit_nas.arch import ArchConfig, StageConfig
from evit_nas.network.cost import cost

# top-1 in %, 224 px, 300 epochs, no distillation: evaluation in the README of microsoft/Cream, EfficientViT, 4a13c40
PUBLISHED = {"m0": 63.296, "m1": 68.356, "m2": 70.786, "m3": 73.390, "m4": 74.266, "m5": 77.124}

# Ablations of m4, 100 epochs (arXiv 2305.07027, table 6, as two third-party summaries give it; the table itself was not
# read). Only the cascade's is a change of one field of an ArchConfig. The others set the size of such effects:
# block -3.0, attention -1.1, queries and keys as wide as values -1.4, FFN ratio 4 at equal speed -1.5, no token
# interaction -1.4, LayerNorm -0.9, and the cascade itself.
WITHOUT_CASCADE = -1.5
TYPICAL_ABLATION = 1.4  # median magnitude, points

RANGE = 2.0  # beyond this factor outside the MACs or parameters of m0 to m5 no estimate is made
T_80, NORMAL_80 = 1.638, 1.282  # half-widths of 80 % intervals in sd: t with 6 - 3 degrees of freedom, normal


@dataclass(frozen=True)
class ImageNetEstimate:
    """An estimated top-1 in % with an 80 % interval; nobody has trained this network."""

    top1: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"about {self.top1:.0f} % ({self.low:.0f} to {self.high:.0f}), estimated"


def imagenet_estimate(arch: ArchConfig) -> ImageNetEstimate | None:
    """What the paper's recipe may reach with this network on ImageNet-1k.

    None for another task than 224 px, 3 channels and 1000 classes, and for MACs or parameters more than `RANGE`
    times outside those of m0 to m5, where the line is no evidence.
    """
    if (arch.input_size, arch.in_channels, arch.num_classes) != ((224, 224), 3, 1000):
        return None
    x, (published, log_error) = _size(arch), _published()
    margin = math.log(RANGE)
    if (x < published.min(0) - margin).any() or (x > published.max(0) + margin).any():
        return None
    line = _line(published, log_error)
    residual_var = float(((log_error - _at(published, line)) ** 2).sum()) / (len(published) - len(line))
    gram = np.column_stack([np.ones(len(published)), published])
    row = np.concatenate([[1.0], x])
    leverage = float(row @ np.linalg.solve(gram.T @ gram, row))
    error = math.exp(float(_at(x, line)))
    size_half = T_80 * error * math.sqrt(residual_var * (1 + leverage))

    departures = _departures(arch)
    unknown_half = NORMAL_80 * TYPICAL_ABLATION * math.sqrt(math.fsum(share**2 for share in departures.values()))
    top1, half = 100 - error + WITHOUT_CASCADE * departures["cascade"], math.hypot(size_half, unknown_half)
    return ImageNetEstimate(top1, top1 - half, min(100.0, top1 + half))


def leave_one_out() -> dict[str, float]:
    """Estimated minus published top-1 in points, each preset estimated from the other five."""
    sizes, log_error = _published()
    off = {}
    for index, name in enumerate(PUBLISHED):
        others = np.arange(len(sizes)) != index
        line = _line(sizes[others], log_error[others])
        off[name] = 100 - math.exp(float(_at(sizes[index], line))) - PUBLISHED[name]
    return off


def _departures(arch: ArchConfig) -> dict[str, float]:
    """The share of the blocks that differ from those of m0 to m5 in each respect, 0 to 1."""

    def unlike(index: int, stage: StageConfig) -> dict[str, bool]:
        return {
            "mixer": stage.mixer != "softmax",
            "cascade": stage.mixer == "softmax" and stage.heads > 1 and not stage.cascade,
            "qk_dim": stage.mixer != "none" and stage.qk_dim != 16,
            "v_ratio": stage.mixer != "none" and stage.v_dim != stage.head_dim,
            "window": stage.mixer == "softmax" and arch.window_side(index) != min(7, *arch.grids[index]),
            "ffn_ratio": stage.ffn_dim != 2 * stage.width,
            "ffn_count": stage.ffn_count != 1,
        }

    blocks = sum(stage.depth for stage in arch.stages)
    found = [unlike(index, stage) for index, stage in enumerate(arch.stages)]
    shares = {
        name: sum(stage.depth for stage, own in zip(arch.stages, found, strict=True) if own[name]) / blocks
        for name in found[0]
    }
    slim = [arch.merge_dim(index) != 4 * arch.stages[index - 1].width for index in (1, 2)]
    width = arch.stages[0].width
    paper_stem = (width // 8, width // 4, width // 2, width)
    return shares | {"merge_ratio": sum(slim) / len(slim), "stem_ratio": float(arch.stem_widths != paper_stem)}


def _size(arch: ArchConfig) -> np.ndarray:
    total = cost(arch)
    return np.log([total.macs, total.params])


@cache
def _published() -> tuple[np.ndarray, np.ndarray]:
    """(6, 2) logs of MACs and parameters, (6,) logs of the top-1 error."""
    sizes = [_size(ArchConfig.preset(name)) for name in PUBLISHED]
    return np.array(sizes), np.log(100 - np.array(list(PUBLISHED.values())))


def _line(sizes: np.ndarray, log_error: np.ndarray) -> np.ndarray:
    """Intercept and two slopes by least squares; with the published figures more of either never hurts."""
    design = np.column_stack([np.ones(len(sizes)), sizes])
    line: np.ndarray = np.linalg.lstsq(design, log_error, rcond=None)[0]
    return line


def _at(sizes: np.ndarray, line: np.ndarray) -> np.ndarray:
    value: np.ndarray = line[0] + sizes @ line[1:]
    return value
