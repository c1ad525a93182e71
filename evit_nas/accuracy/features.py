"""An architecture as numbers a predictor can learn from: its code (what was chosen), and what that costs, by part.

Which of them a predictor sees, and what else (proxies, the score of a short training), is a matter of columns: a
table is (n, d), and more evidence is more columns. Amounts enter as logs, since twice as wide means the same change
everywhere. Built on what the network uses, so that equal networks have equal rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from evit_nas.arch import ArchConfig
from evit_nas.errors import UsageError, did_you_mean
from evit_nas.network.cost import cost, stage_costs


def code(arch: ArchConfig) -> dict[str, float]:
    """The choices that make the network, at most 13 a stage; a stage without attention has no heads.

    Image size, channels and classes belong to the task and are left out.
    """
    found = {"stem_ratio": arch.stem_widths[2] / arch.stages[0].width}
    for index, stage in enumerate(arch.stages):
        used = {
            "log_width": math.log(stage.width),
            "log_depth": math.log(stage.depth),
            "ffn_count": float(stage.ffn_count),
            "ffn_ratio": stage.ffn_dim / stage.width,
            "softmax": float(stage.mixer == "softmax"),
            "linear": float(stage.mixer == "linear"),
        }
        if index:
            used["merge_ratio"] = arch.merge_dim(index) / arch.stages[index - 1].width
        if stage.mixer != "none":
            used |= {
                "log_heads": math.log(stage.heads),
                "log_qk_dim": math.log(stage.qk_dim),
                "v_ratio": stage.v_dim / stage.head_dim,  # as rounded: ratios that round alike are one network
            }
        if stage.mixer == "softmax":
            kernels = stage.used_q_kernels
            used |= {
                "cascade": float(stage.cascaded),
                "q_kernel": math.fsum(kernels) / len(kernels),
                "window": float(arch.window_side(index)),
            }
        found |= {f"stage{index + 1}.{name}": value for name, value in used.items()}
    return found


def size(arch: ArchConfig) -> dict[str, float]:
    """Logs of parameters, MACs and depth: the baseline that every predictor has to beat."""
    total = cost(arch)
    return {"log_params": math.log(total.params), "log_macs": math.log(total.macs), "log_depth": math.log(total.depth)}


def stages(arch: ArchConfig) -> dict[str, float]:
    """Logs of the MACs and parameters of each part but the classifier: of two networks of one size, the better one is
    often that which spends it elsewhere."""
    parts = stage_costs(arch)[:-1]
    return {
        f"{part.name}.log_{unit}": math.log(amount)
        for part in parts
        for unit, amount in (("macs", part.macs), ("params", part.params))
    }


INPUTS: Mapping[str, Callable[[ArchConfig], dict[str, float]]] = {"code": code, "stages": stages, "size": size}
# m0 attends by softmax in all stages, so none of the features is missing there
_COLUMNS = {name: tuple(describe(ArchConfig.preset("m0"))) for name, describe in INPUTS.items()}


def table(archs: Sequence[ArchConfig], inputs: Sequence[str] = tuple(INPUTS)) -> np.ndarray:
    """(n, d) features, the same d columns in the same order for every set of architectures.

    NaN stands where a network has no such feature. Append further evidence as columns: np.column_stack([table, zc]).

    Raises:
        UsageError: an input is unknown.
    """
    for name in inputs:
        if name not in INPUTS:
            raise UsageError(f"no input of the predictor is called '{name}'. {did_you_mean(name, INPUTS)}")
    rows = []
    for arch in archs:
        row: list[float] = []
        for name in inputs:
            found = INPUTS[name](arch)
            row += [found.get(column, math.nan) for column in _COLUMNS[name]]
        rows.append(row)
    return np.array(rows, dtype=float).reshape(len(archs), sum(len(_COLUMNS[name]) for name in inputs))
