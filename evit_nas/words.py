"""The words that a search is asked for in, on the command line and from Python alike, and the settings they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack, cast

from evit_nas.config import AccuracySettings, Conditions, SearchSettings, ShortRecipe, Target
from evit_nas.errors import UsageError, did_you_mean
from evit_nas.files import located
from evit_nas.latency.machine import usable_cores
from evit_nas.quantities import parse_budgets, parse_duration, parse_quantity, resolved_device
from evit_nas.regime import Regime, default_regime
from evit_nas.runs import Run
from evit_nas.space import SearchSpace, resolved_space
from evit_nas.yamlio import read_yaml, validate

DEFAULT_SPACE = "efficientvit-224"
RUNGS = (1, 2, 6)  # epochs of the cycles of `--scheduler asha`: three times as much training at each rung

_AS_THEY_ARE = (
    "budget_stat",
    "sampler",
    "workers",
    "trials",
    "patience",
    "front_size",
    "pool",
    "seed",
    "engine",
    "together",
)
_MEANT = {"table": "table", "supernet": "supernet"}  # words that mean a method where none is named
_ONLY = {"labels": "predictor", "labels_from": "predictor", "scheduler": "short"}  # words that one method alone heeds
_OF_CLUSTER = ("address", "cpus_per_trial", "gpus_per_trial", "concurrent", "max_failures", "storage_path")


class Words(TypedDict, total=False):
    """The options of `evit-nas search`; its --help says what each of them means. None is the same as leaving it out."""

    config: str | Path | None
    """A run folder, or a file that `evit-nas config` wrote: what holds where nothing else is given."""
    budget: str | None
    device: str | Sequence[str] | None
    budget_stat: str | None
    objective: str | Sequence[str] | None
    min_score: float | None
    max_params: str | None
    max_macs: str | None
    max_memory: str | None
    max_energy: str | None
    space: str | Path | None
    image_size: int | None
    threads: int | None
    batch: int | None
    precision: str | None
    session: Sequence[str] | None
    accuracy: str | None
    images: str | int | None
    classes: int | None
    data: str | None
    labels: int | None
    labels_from: Sequence[str | Path] | None
    table: str | None
    supernet: str | Path | None
    scheduler: str | None
    sampler: str | None
    workers: int | None
    trials: int | None
    time: str | None
    patience: int | None
    front_size: int | None
    pool: int | None
    seed: int | None
    engine: str | None
    together: int | None
    address: str | None
    cpus_per_trial: float | None
    gpus_per_trial: float | None
    concurrent: int | None
    max_failures: int | None
    storage_path: str | None
    storage: str | None


def said(**words: Any) -> dict[str, Any]:
    """The words that are not None, which means the same as left out."""
    return {word: value for word, value in words.items() if value is not None}


def settings_from(**words: Unpack[Words]) -> SearchSettings:
    """The settings that the words of a search describe.

    Raises:
        UsageError: a word that is not known, a wrong value, or no budget.
    """
    for word in words.keys() - Words.__annotations__.keys():
        raise UsageError(f"a search has no option '{word}'. {did_you_mean(word, Words.__annotations__)}")
    given = said(**words)
    base = load_settings(Path(given["config"])) if "config" in given else None
    fields: dict[str, Any] = dict(base) if base else {"workers": usable_cores() - 1}
    fields |= {word: given[word] for word in _AS_THEY_ARE if word in given}
    if base is None or "space" in given:
        name = resolved_space(str(given.get("space", DEFAULT_SPACE)))
        fields |= {"space_name": name, "space": SearchSpace.load(name)}
    method = _method(given, fields)  # by the space as it is: scores hold for images, not for the size they are taken at
    if "image_size" in given:
        resized = fields["space"].model_dump(mode="json") | {"image_size": given["image_size"]}
        fields["space"] = validate(SearchSpace, resized, "--image-size")
    if "time" in given:
        fields["time_s"] = parse_duration(given["time"])
    if "storage" in given:  # a journal must be found from other folders as well
        fields["storage"] = given["storage"] if "://" in given["storage"] else str(Path(given["storage"]).absolute())
    if "objective" in given:
        fields["objectives"] = [given["objective"]] if isinstance(given["objective"], str) else given["objective"]
    fields["targets"] = _targets(given, base.targets if base else ())
    fields["limits"] = _limits(given, dict(base.limits) if base else {})
    fields["accuracy"] = _accuracy(given, dict(base.accuracy) if base else {}, method, fields["space"].num_classes)
    fields["cluster"] = _cluster(given, base)
    settings = validate(SearchSettings, fields, "search")
    from evit_nas.searching.samplers import check_sampler

    check_sampler(settings.sampler)
    return settings


def elsewhere(run: Run, **words: Unpack[Words]) -> None:
    """Lets a run go on with another engine or on another cluster, which move no number of it.

    Raises:
        UsageError: a wrong value.
    """
    given = said(**words)
    fields = dict(run.settings) | {"cluster": _cluster(given, run.settings)}
    fields |= {word: given[word] for word in ("engine", "workers") if word in given}
    run.settings = validate(SearchSettings, fields, "resume")


def with_supernet(words: Words, watch: Any, command: str) -> Words:
    """The words of a search that is to be judged by a supernet, which is trained first where none is named.

    Args:
        words: those of `settings_from`; others come back as they are.
        watch: told how the training goes.
        command: what its record says was typed.

    Raises:
        UsageError: a wrong word, or space or data cannot be used.
    """
    others = without_supernet(words)
    if others == words:
        return words
    from evit_nas.training.hardware import Hardware, loaders
    from evit_nas.training.supernet_session import SupernetAsked, supernet_for

    settings = settings_from(**others)
    first = settings.targets[0]
    asked = SupernetAsked(
        space=settings.space_name,
        data=cast("str", words.get("data")),
        budget_ms=first.budget_ms,
        conditions=first.conditions,
        seed=settings.seed,
    )
    folder = supernet_for(asked, watch, Hardware(workers=loaders(None)), command)
    return cast("Words", dict(others) | {"accuracy": "supernet", "supernet": folder})


def without_supernet(words: Words) -> Words:
    """The words of a search less those of a supernet that has to be trained for it first, if it has to be."""
    if words.get("accuracy") != "supernet" or words.get("supernet") is not None or words.get("data") is None:
        return words
    return cast("Words", {word: value for word, value in words.items() if word not in ("accuracy", "data")})


def load_settings(path: Path) -> SearchSettings:
    """The settings of a run folder, or those in a file that `evit-nas config` wrote.

    Raises:
        UsageError: it is neither.
    """
    if path.is_dir():
        return Run.open(path).settings
    return validate(SearchSettings, read_yaml(path), str(path))


def _targets(given: dict[str, Any], before: Sequence[Target]) -> list[dict[str, Any]]:
    devices = given.get("device") or [target.device for target in before] or ["cpu"]
    known = {target.device: target for target in before}
    conditions = [
        _conditions(name, given, known[resolved].conditions if (resolved := resolved_device(name)) in known else None)
        for name in ([devices] if isinstance(devices, str) else devices)
    ]
    names = [one.device for one in conditions]
    if "budget" in given:
        budgets = parse_budgets(given["budget"], names)
    elif missing := [name for name in names if name not in known]:
        raise UsageError(f"there is no latency budget for the device '{missing[0]}'; add --budget 5ms.")
    else:
        budgets = [known[name].budget_ms for name in names]
    return [{"conditions": one, "budget_ms": ms} for one, ms in zip(conditions, budgets, strict=True)]


def _conditions(device: str, given: dict[str, Any], before: Conditions | None) -> Conditions:
    from evit_nas.latency import parse_conditions

    threads, batch, precision, entries = None, 1, None, given.get("session", ())
    if before is not None:
        threads = before.threads if before.threads > 1 else None  # some devices take no threads at all
        batch, precision, entries = before.batch, before.precision, given.get("session", before.entries)
    return parse_conditions(
        device,
        threads=given.get("threads", threads),
        batch=given.get("batch", batch),
        precision=given.get("precision", precision),
        entries=entries,
    )


def _limits(given: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    from evit_nas.searching.objectives import OBJECTIVES

    words = {each.limit.removeprefix("--").replace("-", "_"): each for each in OBJECTIVES.values()}
    found = {each.metric: each.parse(given[word]) for word, each in words.items() if word in given and word != "budget"}
    return before | found


def _method(given: dict[str, Any], before: dict[str, Any]) -> str:
    """The accuracy method that the words name or mean, or that was before them; with neither what suits the space.

    Raises:
        UsageError: a word has no effect on that method.
    """
    from evit_nas.accuracy.coverage import default_method

    meant = next((method for word, method in _MEANT.items() if word in given), None)
    known = before["accuracy"].method if "accuracy" in before else None
    method: str = given.get("accuracy") or meant or known or default_method(before["space"], given.get("data"))
    for word, only in (_MEANT | _ONLY).items():
        default = AccuracySettings.model_fields[word].default  # which has no effect anywhere
        if given.get(word, default) != default and method != only:
            option = f"--{word.replace('_', '-')}"
            raise UsageError(
                f"{option} is for --accuracy {only}, and this search has {method}: add the one or leave out the other."
            )
    return method


def _accuracy(given: dict[str, Any], before: dict[str, Any], method: str, num_classes: int) -> dict[str, Any]:
    before |= {word: given[word] for word in ("labels", "scheduler") if word in given} | {"method": method}
    if "data" in given:
        before["data"] = located(given["data"])
    if "table" in given:
        table = Path(given["table"])
        before["table"], before["regime"] = str(table.absolute() if table.is_file() else table), None
    if "supernet" in given:
        before["supernet"] = located(given["supernet"])
    recipe = before.get("recipe", ShortRecipe())
    if given.get("scheduler") == "asha" and recipe.last_rung == 0:
        before["recipe"] = recipe.model_copy(update={"cycles": RUNGS})
    if "labels_from" in given:
        runs = given["labels_from"]
        before["labels_from"] = [located(run) for run in ([runs] if isinstance(runs, str | Path) else runs)]
    if {"images", "classes"} & given.keys() and (method != "table" or before.get("table")):
        raise UsageError(
            "--images and --classes say what --accuracy table scores for where no --table is named; "
            "every other score has its own images."
        )
    asked = before.get("regime")
    before["regime"] = None  # which every other score has of its own
    if method == "table" and not before.get("table"):
        before["regime"] = regime_from(given, num_classes) or asked or default_regime(num_classes)
    return before


def regime_from(given: Mapping[str, Any], num_classes: int) -> Regime | None:
    """The regime that the words `images`, `classes` and `data` name; None if they name none.

    Args:
        given: the words.
        num_classes: where `classes` is left out.

    Raises:
        UsageError: no such regime, or data that cannot be read.
    """
    if "data" in given and not {"images", "classes"} & given.keys():
        from evit_nas.data.sources import open_source

        source = open_source(given["data"])
        return Regime(images=len(source.train.labels), classes=len(source.classes))
    if not {"images", "classes"} & given.keys():
        return None
    fallback = default_regime(given.get("classes", num_classes))
    images = given.get("images", fallback.images)
    count = round(parse_quantity(images, "--images")) if isinstance(images, str) else images
    return validate(Regime, {"images": count, "classes": fallback.classes}, "--images and --classes")


def _cluster(given: dict[str, Any], before: SearchSettings | None) -> dict[str, Any]:
    """
    Raises:
        UsageError: words of a cluster for a search that takes none.
    """
    found = {word: given[word] for word in _OF_CLUSTER if word in given}
    if found and given.get("engine", before.engine if before else "local") != "ray":
        option = f"--{next(iter(found)).replace('_', '-')}"
        raise UsageError(f"{option} is for a cluster, and this search runs on this machine alone: add --engine ray.")
    return (dict(before.cluster) if before else {}) | found
