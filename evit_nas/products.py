"""From Python: measure, export, train, evaluate, ship, predict and make, in the words of the command line.

    model = evit_nas.make("photos", budget="5ms", time="1h")
    print(model.predict("cat.jpg"))

Each step shows how far it is on a terminal and in a notebook; elsewhere the logger `evit_nas` is told. Results print as
tables, and have them as pandas frames.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evit_nas.calls import Listing, called, check_least, note
from evit_nas.commands import said_in_python
from evit_nas.data.once import opened_once
from evit_nas.errors import EvitNasError, UsageError, first_few
from evit_nas.trained import WEIGHTS
from evit_nas.views import onlooker

if TYPE_CHECKING:
    from evit_nas.arch import ArchConfig
    from evit_nas.evaluation import Evaluation
    from evit_nas.latency import Measurable
    from evit_nas.measuring import Measured
    from evit_nas.shipped import Shipped
    from evit_nas.shipping.answer import Answer
    from evit_nas.trained import Trained
    from evit_nas.training.session import Outcome, Planned


@dataclass(frozen=True)
class Model:
    """A shipped folder."""

    folder: Path
    shipped: Shipped

    @classmethod
    def load(cls, folder: str | Path) -> Model:
        """The one in `folder`.

        Raises:
            UsageError: it is no shipped folder.
        """
        from evit_nas.shipped import Shipped

        with said_in_python():
            return cls(Path(folder), Shipped.load(Path(folder)))

    def predict(self, *images: str | Path, top: int = 1, int8: bool = False) -> Listing[Answer]:
        """What the model says to pictures; see `predict`."""
        return predict(self.folder, *images, top=top, int8=int8)

    def __repr__(self) -> str:
        return f"{self.folder}: {self.shipped.summary()}"


def measure(
    *networks: str | Path | ArchConfig,
    device: str = "cpu",
    threads: int | None = None,
    batch: int = 1,
    precision: str | None = None,
    image_size: int | None = None,
    session: Sequence[str] = (),
    references: bool = False,
    quick: bool = False,
) -> Listing[Measured]:
    """Latency and memory of networks side by side, all by one yardstick, as `evit-nas measure` has them.

    Args:
        networks: presets, YAML files, run/name, timm:NAME, .onnx files, architectures.
        session: settings for the runtime, NAME=VALUE each.
        references: also m0 to m5 and popular small networks of timm, with their published accuracy.
        quick: as a search measures, instead of strictly; without memory and energy.

    Raises:
        UsageError: a wrong word or value, or no network.
        LostLink: the device is out of reach.
        EvitNasError: none of them could be measured; of others the log says why.
    """
    from evit_nas.arch import ArchConfig
    from evit_nas.latency import STRICT, Protocol, parse_conditions
    from evit_nas.lookup import find_measurable, resized
    from evit_nas.measuring import measure_all

    if not networks and not references:
        raise UsageError("name at least one network (m0..m5, a YAML file, run/name, timm:NAME, an .onnx file).")
    with said_in_python():
        conditions = parse_conditions(device, threads=threads, batch=batch, precision=precision, entries=session)
        chosen: dict[str, Measurable] = {}
        for network in networks:
            if isinstance(network, ArchConfig):
                chosen[network.key] = network if image_size is None else resized(network, image_size)
            else:
                chosen[str(network)] = find_measurable(str(network), image_size)
        protocol = Protocol() if quick else STRICT
        found, failed = measure_all(chosen, conditions, protocol, note, memory=not quick, references=references)
        if not found:
            raise EvitNasError(f"not measured: {', '.join(failed)}; the log says why.")
    return Listing(found, [one.plain() for one in found])


def export(
    arch: str | Path | ArchConfig,
    to: str = "onnx",
    *,
    out: str | Path | None = None,
    weights: str | Path | None = None,
    batch: int = 1,
    seed: int = 0,
) -> Path:
    """Writes the deploy form of a network, checked against torch, as `evit-nas export` does; returns the file.

    Args:
        to: "onnx", "torchscript" or "pt2".
        out: the file; by default the network's name with its suffix, here.
        weights: a checkpoint or its folder; by default those of a training or shipped folder, else random ones.
        batch: images per inference, 0 for a dynamic batch size.
        seed: of random weights.

    Raises:
        UsageError: a wrong word or value, or weights that do not fit.
        EvitNasError: the file does not compute what the network does; nothing is written.
    """
    from evit_nas import exporting
    from evit_nas.arch import ArchConfig
    from evit_nas.lookup import find_arch
    from evit_nas.trained import parted

    if to not in exporting.WRITERS:
        raise UsageError(f"to must be one of {', '.join(exporting.WRITERS)}, got '{to}'.")
    check_least(batch=(batch, 0))
    with said_in_python():
        config = arch if isinstance(arch, ArchConfig) else find_arch(str(arch))
        name = config.key if isinstance(arch, ArchConfig) else Path(arch).resolve().name.removesuffix(".yaml")
        if weights is None and not isinstance(arch, ArchConfig):
            weights = arch if (Path(arch) / WEIGHTS).is_file() or parted(str(arch)) is not None else None
        _, suffix = exporting.WRITERS[to]
        path = Path(out) if out is not None else Path(f"{name}{suffix}")
        known = None if weights is None else Path(weights)
        exporting.export(to, config, path, weights=known, batch=batch or None, seed=seed)
    return path


@opened_once()
def train(
    *what: str | Path,
    data: str | Path | None = None,
    recipe: str = "auto",
    epochs: int | None = None,
    time: str | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    changes: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    init: str | Path = "scratch",
    teacher: str | Path | None = None,
    download: bool = False,
    front: bool = False,
    top: int | None = None,
    baseline: str | None = None,
    seed: int = 0,
    seeds: int = 1,
    out: str | Path | None = None,
    resume: bool = False,
    workers: int | None = None,
    ship: bool = True,
) -> Listing[Trained]:
    """Trains architectures on images and compares them, as `evit-nas train` does; its help says what the words mean.

    Args:
        what: presets, YAML files, run/name, runs (with `front` or `top`), training folders.
        changes: fields of the recipe.

    Returns:
        What was trained; `rows` compare the networks, with seeds together and the folders of each: what was shipped is
        in `shipped` there.

    Raises:
        UsageError: a wrong word or value.
        RunError: a folder holds another training, or an unfinished one and `resume` is not said.
        EvitNasError: something could not be trained or shipped.
    """
    from evit_nas.quantities import parse_duration
    from evit_nas.training.compare import compare
    from evit_nas.training.hardware import Hardware, loaders
    from evit_nas.training.session import Asked, carry_out, prepare
    from evit_nas.words import said

    check_least(epochs=(epochs, 1), batch_size=(batch_size, 2), top=(top, 1), seeds=(seeds, 1), workers=(workers, 0))
    with said_in_python():
        asked = Asked(
            what=what,
            data=None if data is None else str(data),
            recipe=recipe,
            changes={**(changes or {}), **said(epochs=epochs, batch_size=batch_size)},
            rate=lr,
            time_s=None if time is None else parse_duration(time),
            image_size=image_size,
            init=str(init),
            teacher=None if teacher is None else str(teacher),
            download=download,
            front=front,
            top=top,
            baseline=baseline,
            seeds=range(seed, seed + seeds),
            out=None if out is None else Path(out),
        )
        hardware = Hardware(workers=loaders(workers))
        planned = prepare(asked, hardware, note)
        words = {
            "data": data,
            "recipe": recipe,
            "epochs": epochs,
            "time": time,
            "batch_size": batch_size,
            "lr": lr,
            "changes": changes,
            "image_size": image_size,
            "init": init,
            "teacher": teacher,
            "download": download,
            "front": front,
            "top": top,
            "baseline": baseline,
            "seed": seed,
            "seeds": seeds,
            "out": out,
            "ship": ship,
        }
        command, again = (called(train, *what, **words, resume=resumed) for resumed in (False, True))
        with onlooker() as watch:
            outcome = carry_out(planned, watch, hardware, command=command, again=again, resume=resume, ship=ship)
        if outcome.failed:
            raise EvitNasError("not everything could be trained and shipped, see above; resume=True does the rest")
        known_ms, equal_time = outcome.latencies_ms(), planned.equal_time
        rows = compare(outcome.trained, planned.baselines, known_ms, outcome.folders, equal_time=equal_time)
    return Listing(outcome.trained.values(), rows)


@opened_once()
def evaluate(
    *models: str | Path,
    data: str | Path,
    split: str = "val",
    batch: int = 64,
    workers: int | None = None,
    like: str | Path | None = None,
) -> Listing[Evaluation]:
    """Accuracy, confusions and calibration of trained networks, as `evit-nas eval` has them.

    Args:
        models: training or shipped folders, .onnx files, timm:NAME@FILE.
        split: "val" or "train".
        like: a folder whose classes and preprocessing a lone .onnx file has.

    Raises:
        UsageError: a network or the data cannot be used, or their classes differ.
    """
    from evit_nas.evaluation import evaluate as judged
    from evit_nas.evaluation import summary
    from evit_nas.training.hardware import loaders

    check_least(batch=(batch, 1), workers=(workers, 0))
    if split not in ("val", "train"):
        raise UsageError(f"split must be 'val' or 'train', got '{split}'.")
    with said_in_python(), onlooker() as watch:
        found = judged(
            [str(model) for model in models],
            str(data),
            split="train" if split == "train" else "val",
            batch=batch,
            workers=loaders(workers),
            like=None if like is None else str(like),
            note=watch.note,
            step=lambda done, total: watch.step("batches", done, total),
        )
    return Listing(found, summary(found))


def ship(training: str | Path, out: str | Path | None = None, **options: Any) -> Model:
    """Makes a folder that deploys of a finished training or SUPERNET#ARCH; options: `evit_nas.shipping.package.ship`.

    Raises:
        UsageError: the training or its data cannot be used, or `out` exists.
        EvitNasError: the network is worth nothing, or its files do not compute what it does.
    """
    from evit_nas.trained import parted
    from evit_nas.training.inherit import inherit
    from evit_nas.training.session import SHIPPED, shipped

    command = called(ship, training, out=out, **options)
    with said_in_python(), onlooker() as watch:
        whole = Path(training) if parted(str(training)) is None else inherit(str(training), command, watch.note)
        folder = whole / SHIPPED if out is None else Path(out)
        made = shipped(whole, folder, watch.note, **({"command": command} | options))
    return Model(folder, made)


def predict(folder: str | Path, *images: str | Path, top: int = 1, int8: bool = False) -> Listing[Answer]:
    """What the network in a shipped folder says to pictures: files or folders of them. Warns of unreadable ones.

    Args:
        top: how many classes to name.
        int8: whether the file in 8 bits answers.

    Raises:
        UsageError: no such folder or picture.
    """
    from evit_nas.shipping.answer import answers, find_pictures, rows

    check_least(top=(top, 1))
    unread: list[str] = []
    with said_in_python():
        pictures = find_pictures([str(image) for image in images])
        found = answers(Path(folder), pictures, top=top, int8=int8, skip=unread.append)
    if unread:
        warnings.warn(f"{len(unread)} of {len(pictures)} pictures could not be read: {first_few(unread)}", stacklevel=2)
    return Listing(found, rows(found))


@opened_once()
def make(
    data: str | Path,
    budget: str,
    *,
    time: str = "2h",
    device: str = "cpu",
    space: str | Path | None = None,
    image_size: int | None = None,
    init: str | Path = "scratch",
    seed: int = 0,
    out: str | Path | None = None,
    workers: int | None = None,
) -> Model:
    """Searches for a folder of photographs, trains, and ships the best, as `evit-nas make` does.

    The same call goes on after an interruption.

    Raises:
        UsageError: the photographs or a word cannot be used.
        Infeasible: no architecture keeps the budget.
        EvitNasError: nothing that was trained is worth shipping.
    """
    from evit_nas.making import made_of, order_of
    from evit_nas.training.hardware import Hardware, loaders

    with said_in_python():
        order = order_of(str(data), budget, time, device, space, image_size, str(init), seed, out)
        command = called(
            make,
            data,
            budget,
            time=time,
            device=device,
            space=space,
            image_size=image_size,
            init=init,
            seed=seed,
            out=out,
        )
        made = made_of(order, Hardware(workers=loaders(workers)), _Onlooker(), command)
    return Model(made.folder, made.shipped)


class _Onlooker:
    """Views `make`."""

    def note(self, message: str) -> None:
        note(message)

    def step(self, command: str) -> None:
        note(f"$ {command}")

    def progress(self) -> AbstractContextManager[Any]:
        return onlooker()

    def found(self, run: Any, front: Any) -> None:
        note(f"{len(front.members)} on the front of {run.path}")

    def trained(self, planned: Planned, outcome: Outcome) -> None:
        for settings, trained in outcome.trained.items():
            note(f"{settings.name}: top-1 {trained.top1:.2f} %")

    def answered(self, shipped: Path, answers: list[Answer], truth: dict[str, str]) -> None:
        right = sum(answer.classes[0] == truth[answer.image] for answer in answers)
        note(f"{right} of {len(answers)} validation images answered right")
