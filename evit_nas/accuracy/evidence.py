"""Trained networks as a predictor of accuracy sees them, wherever they were trained: rows of one big table.

A network is its size without the classifier (which follows the classes, not the choice of a search), and its features.
What it came to is the log of its error: a power law of sizes is a line in it, and a choice costs about the same share
of the error at every size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Self

import numpy as np

from evit_nas.accuracy.features import table as features_of
from evit_nas.arch import PRESETS, ArchConfig
from evit_nas.network.cost import stage_costs
from evit_nas.published import IMAGENET_1K, REGIMES, RELATIVES, TOP1, WITHOUT_CASCADE
from evit_nas.regime import Regime

if TYPE_CHECKING:
    from evit_nas.accuracy.table import LabelTable

LEAST_ERROR = 0.1  # percent: a network without a mistake on some hundred images is no infinitely good one
PUBLISHED_SD, ONE_SEED_SD = 0.003, 0.015  # of log errors: on 50,000 validation images; on 5,000 by one seed
RELATIVE_SD = 0.035  # what blocks of another kind do to a network of a given size (ImageNet, the seven relatives)
SUMMARY_SD = 0.02  # of a difference known from summaries, after 100 epochs instead of 300


@dataclass(frozen=True, eq=False)
class Networks:
    """Networks under the regimes they are asked about."""

    data: np.ndarray
    """(n,) where they were trained: equal for the same images and one recipe; "" for none in particular."""
    decades: np.ndarray
    """(n, 2) of their regimes."""
    sizes: np.ndarray
    """(n, 2) logs of MACs and of parameters, less those of the typical network of the paper; classifiers left out."""
    plain: np.ndarray
    """(n,) shares of the blocks that lack the paper's attention: another mixer or none, or heads without a cascade."""
    features: np.ndarray
    """(n, d) as `evit_nas.accuracy.features` has them; all NaN for a network that is known by its size alone."""

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: np.ndarray) -> Self:
        """The rows at some indices or under a mask."""
        return type(self)(*(getattr(self, field.name)[index] for field in fields(self)))

    @classmethod
    def joined(cls, parts: Iterable[Self]) -> Self:
        """All rows of several, in order."""
        parts = list(parts)
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


@dataclass(frozen=True, eq=False)
class Evidence(Networks):
    """Trained networks, with what they came to."""

    keys: np.ndarray
    """(n,) of the architectures; "" for one that is none of ours."""
    log_error: np.ndarray
    """(n,) logs of 100 minus the accuracy in percent; lower is better."""
    noise_sd: np.ndarray
    """(n,) standard errors of these."""


def networks(
    archs: Sequence[ArchConfig], regime: Regime, data: str = "", inputs: Sequence[str] | None = None
) -> Networks:
    """Architectures as they would be under a regime.

    Args:
        archs: n of them.
        regime: images and classes.
        data: its name, where networks were trained on just these.
        inputs: names of the features that may be seen; all by default, none of them leaves the size.
    """
    n = len(archs)
    features = features_of(archs) if inputs is None else features_of(archs, inputs)
    # as wide as with all inputs, so that all rows can be joined; NaN counts as typical. Columns have fixed places:
    # `inputs` other than the first of INPUTS would come to stand in those of others
    whole = np.full((n, features_of(archs[:1]).shape[1] if n else features.shape[1]), math.nan)
    whole[:, : features.shape[1]] = features
    plain = np.array([_plain(arch) for arch in archs], dtype=float)
    return Networks(np.full(n, data, dtype=object), np.tile(regime.decades, (n, 1)), _sizes(archs), plain, whole)


def of_table(table: LabelTable, inputs: Sequence[str] | None = None) -> Evidence:
    """The trained networks of a table."""
    truth, noise = table.truth()
    error = np.maximum(100 - truth, LEAST_ERROR)
    rows = networks(table.archs, table.regime, table.source, inputs)
    return labelled(rows, table.archs, np.log(error), noise / error)  # the sd of a log is the relative sd


@cache
def published() -> Evidence:
    """What others have trained: m0 to m5 on ImageNet and on a tenth of it, relatives, and the paper's cascade."""
    presets = {name: ArchConfig.preset(name) for name in PRESETS}
    parts = [
        _known(list(presets.values()), data, [top1[name] for name in presets], sd)
        for (data, top1), sd in zip(TOP1.items(), (PUBLISHED_SD, ONE_SEED_SD), strict=True)  # in the order of TOP1
    ]
    name, points = WITHOUT_CASCADE
    parts.append(_known([without_cascade(presets[name])], IMAGENET_1K, [TOP1[IMAGENET_1K][name] + points], SUMMARY_SD))
    return Evidence.joined([*parts, relatives()])


def relatives() -> Evidence:
    """Networks of other papers, which are known by their sizes."""
    n, classes = len(RELATIVES), REGIMES[IMAGENET_1K].classes
    head = np.array([one.last_width * classes for one in RELATIVES])[:, None]  # (n, 1) as many MACs as weights
    sizes = np.array([(1e6 * one.macs_m, 1e6 * one.params_m) for one in RELATIVES]) - head
    return Evidence(
        np.full(n, IMAGENET_1K, dtype=object),
        np.tile(REGIMES[IMAGENET_1K].decades, (n, 1)),
        np.log(sizes) - _typical_size(),
        np.zeros(n),  # what other blocks do is in RELATIVE_SD
        np.full((n, features_of([ArchConfig.preset("m0")]).shape[1]), math.nan),
        np.full(n, "", dtype=object),
        np.log([100 - one.top1 for one in RELATIVES]),
        np.full(n, RELATIVE_SD),
    )


def without_cascade(arch: ArchConfig) -> ArchConfig:
    """The same network with all heads computed together."""
    stages = [stage.model_dump() | {"cascade": False} for stage in arch.stages]
    return ArchConfig.model_validate(arch.model_dump() | {"stages": stages})


def _known(archs: Sequence[ArchConfig], data: str, top1: Sequence[float], sd: float) -> Evidence:
    rows = networks(archs, REGIMES[data], data)
    return labelled(rows, archs, np.log(100 - np.array(top1)), np.full(len(archs), sd))


def labelled(rows: Networks, archs: Sequence[ArchConfig], log_error: np.ndarray, noise_sd: np.ndarray) -> Evidence:
    """Rows of `networks` with (n,) logs of what the networks came to, lower is better, and their standard errors."""
    keys = np.array([arch.key for arch in archs], dtype=object)
    columns = {field.name: getattr(rows, field.name) for field in fields(Networks)}
    return Evidence(**columns, keys=keys, log_error=log_error, noise_sd=noise_sd)


def _plain(arch: ArchConfig) -> float:
    blocks = sum(stage.depth for stage in arch.stages)
    lacking = (s.depth for s in arch.stages if s.mixer != "softmax" or (s.heads > 1 and not s.cascade))
    return sum(lacking) / blocks


def _sizes(archs: Sequence[ArchConfig]) -> np.ndarray:
    sizes: np.ndarray = np.array([_size(arch) for arch in archs]).reshape(-1, 2) - _typical_size()
    return sizes


def _size(arch: ArchConfig) -> tuple[float, float]:
    body = stage_costs(arch)[:-1]
    return math.log(sum(part.macs for part in body)), math.log(sum(part.params for part in body))


@cache
def _typical_size() -> np.ndarray:
    """(2,) mean logs of the sizes of m0 to m5."""
    mean: np.ndarray = np.mean([_size(ArchConfig.preset(name)) for name in PRESETS], axis=0)
    return mean


@cache
def typical_features() -> np.ndarray:
    """(d,) mean features of m0 to m5: what a network is compared with."""
    typical: np.ndarray = features_of([ArchConfig.preset(name) for name in PRESETS]).mean(0)
    return typical


def shipped() -> Evidence:
    """All that comes with the package: what is published, and every table of trained networks."""
    from evit_nas.accuracy.table import LabelTable, shipped_tables

    tables = (of_table(LabelTable.load(name)) for name in shipped_tables())
    return Evidence.joined(chain([published()], tables))
