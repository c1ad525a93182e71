"""Trained networks side by side: means over seeds, and how far each is from the baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from types import MappingProxyType
from typing import Any

from evit_nas.arch import ArchConfig
from evit_nas.network.cost import cost
from evit_nas.stats import binomial_error
from evit_nas.trained import Trained
from evit_nas.training.settings import TrainSettings


def compare(
    trainings: Mapping[TrainSettings, Trained],
    baselines: Mapping[str, str],
    latencies_ms: Mapping[ArchConfig, float] = MappingProxyType({}),
    folders: Mapping[TrainSettings, Path] = MappingProxyType({}),
    *,
    equal_time: bool = False,
) -> list[dict[str, Any]]:
    """A row for each network as it was trained, in the order of the trainings: they share one if only the seed differs.

    Args:
        baselines: for networks, by their origin or else their name, the name of the one that they are compared with,
            trained in the same way.
        latencies_ms: of the networks as they are trained, as far as they are known.
        folders: of the trainings, as far as they are asked for.
        equal_time: whether each had the same time: then baselines may have had more or fewer epochs.

    Returns:
        Rows of name, origin, image_size, data, recipe, init, teacher, seeds, mean top-1 and top-5 (percent) and loss
        (nats), the standard error of top-1 because the validation images are few (None where their number is not
        known), its standard deviation over seeds, latency_ms, params, macs, the baseline and `gain`: points of top-1
        above it, with the standard error of that difference (`gain_error`; all None where there is no other network to
        compare with, the error also while one of both has one seed), and the folder of each seed.
    """
    seeds: dict[TrainSettings, list[TrainSettings]] = {}
    for settings in trainings:
        seeds.setdefault(settings.model_copy(update={"seed": 0}), []).append(settings)
    groups = {settings: [trainings[each] for each in own] for settings, own in seeds.items()}
    rows = []
    for settings, group in groups.items():
        top5 = [trained.top5 for trained in group if trained.top5 is not None]
        size = cost(settings.arch)
        row: dict[str, Any] = {
            "name": settings.name,
            "origin": settings.origin,
            "image_size": settings.arch.size_text,
            "data": group[0].data_name,
            "recipe": settings.recipe_name,
            "init": settings.init,
            "teacher": settings.teacher,
            "seeds": len(group),
            "top1": (top1 := fmean(trained.top1 for trained in group)),
            "top1_error": binomial_error(top1, images) if (images := group[0].validation_images) else None,
            "top1_sd": _deviation(group),
            "top5": fmean(top5) if top5 else None,
            "loss": fmean(trained.loss for trained in group),
            "latency_ms": latencies_ms.get(settings.arch),
            "params": size.params,
            "macs": size.macs,
            "baseline": None,
            "gain": None,
            "gain_error": None,
            "folders": [str(folders[each]) for each in seeds[settings] if each in folders],
        }
        others = [other for known, other in groups.items() if _rivals(known, settings, baselines, equal_time)]
        if others:
            row["baseline"] = baselines[_key(settings)]
            row["gain"] = row["top1"] - fmean(trained.top1 for trained in others[0])
            row["gain_error"] = _error(group, others[0])
        rows.append(row)
    return rows


def _rivals(baseline: TrainSettings, settings: TrainSettings, baselines: Mapping[str, str], equal_time: bool) -> bool:
    """Whether `baseline` is what `settings` are compared with: all but the network is the same, or the epochs too."""
    network: dict[str, Any] = {"name": settings.name, "origin": settings.origin, "arch": settings.arch}
    if equal_time:
        epochs = {name: getattr(settings.recipe, name) for name in ("epochs", "warmup_epochs")}
        network["recipe"] = baseline.recipe.model_copy(update=epochs)
    named = baseline.name == baselines.get(_key(settings)) != settings.name  # a network is no baseline of itself
    return named and baseline.model_copy(update=network) == settings  # the seed is 0 in both


def _key(settings: TrainSettings) -> str:
    """What tells networks of a comparison apart: two members of a front may have one name as they are trained."""
    return settings.origin or settings.name


def _deviation(group: Sequence[Trained]) -> float | None:
    return stdev(training.top1 for training in group) if len(group) > 1 else None


def _error(group: Sequence[Trained], other: Sequence[Trained]) -> float | None:
    """Of the difference of two means: the root of the sum of their variances."""
    deviations = [(_deviation(each), len(each)) for each in (group, other)]
    if any(deviation is None for deviation, _ in deviations):
        return None
    return math.sqrt(sum(deviation**2 / count for deviation, count in deviations if deviation is not None))
