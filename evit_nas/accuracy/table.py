"""Tables of trained networks that travel with the package, so that a new score can be tested in seconds.

Every network in them cost minutes: latency, proxies, and for each seed accuracy, cross-entropy and the loss curve.
Written by `evit-nas proxies bench --export`, and read by its `--from-table` and by the default score.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

import evit_nas
from evit_nas.accuracy import ShortScore
from evit_nas.arch import ArchConfig
from evit_nas.config import ShortRecipe
from evit_nas.errors import UsageError, did_you_mean
from evit_nas.files import write_atomically, writing
from evit_nas.regime import Regime
from evit_nas.stats import seed_sd, without_seed_effects
from evit_nas.yamlio import validate

SHIPPED_TABLE = "fashion-mnist-64"  # the largest of `shipped_tables`
PAIRED = 0.5  # share of the binomial error that is left when networks are compared on the same images by cross-entropy
MAX_CORRELATION = -0.3  # of cross-entropy and accuracy, for the one to stand for the other


class Training(BaseModel):
    """One network trained with one seed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    seed: int
    """Of the weights and of the order of the images."""
    score: ShortScore
    """What the training came to."""
    seconds: float
    """Of processor time that it took, on a GPU of wall-clock time."""
    device: str = "cpu"
    """What it was trained on: cpu, or the name of a GPU."""


class TrainedNetwork(BaseModel):
    """One network with its trainings."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    arch: ArchConfig
    """As in the search space, whatever size it was trained at."""
    latency_ms: Annotated[float, Field(gt=0)]
    """Measured median of the architecture itself, not of the narrower network that was trained."""
    proxies: dict[str, float] = Field(default_factory=dict)
    """Zero-cost scores of the architecture itself by name, if any; higher is better."""
    trainings: Annotated[tuple[Training, ...], Field(min_length=1)]
    """Equal but for the seed."""


class LabelTable(BaseModel):
    """Networks trained on one data set by one recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    data: str
    """Name of the data set."""
    recipe: ShortRecipe
    """How the networks were trained."""
    images: Annotated[int, Field(ge=2)] | None = None
    """Training images; None in a table of an earlier version, which had as many as its recipe asks for."""
    classes: Annotated[int, Field(ge=2)] | None = None
    """Classes of the images; None in a table of an earlier version, whose spaces had as many as the data."""
    validation_images: Annotated[int, Field(ge=1)] | None = None
    """Images that the accuracies were measured on; None if that is not known."""
    device: str
    """What the latencies were measured on."""
    networks: Annotated[tuple[TrainedNetwork, ...], Field(min_length=1)]
    """Each once."""

    @model_validator(mode="after")
    def _check(self) -> LabelTable:
        keys = [arch.key for arch in self.archs]
        for index, (key, network) in enumerate(zip(keys, self.networks, strict=True)):
            if key in keys[:index]:
                raise ValueError(f"networks[{index}] is networks[{keys.index(key)}] again: give its trainings together")
            if len({training.seed for training in network.trainings}) < len(network.trainings):
                raise ValueError(f"networks[{index}] has two trainings of the same seed")
        return self

    @classmethod
    def load(cls, name: str | Path) -> LabelTable:
        """A table of the package by name, or any file by path.

        Raises:
            UsageError: there is none, or it is no such table; with the wrong fields and their values.
        """
        shipped = shipped_tables()
        path = shipped.get(str(name), Path(name))
        try:
            content = json.loads(path.read_bytes())
        except OSError as error:
            known = did_you_mean(str(name), shipped) if shipped else "None comes with this installation."
            raise UsageError(f"cannot read the table {name}: {error.strerror}. {known}") from None
        except (ValueError, RecursionError) as error:  # json recurses: brackets by the thousand are too deep
            raise UsageError(
                f"{name} is not a table of trained networks, which `evit-nas proxies bench --export` writes: "
                f"not valid JSON: {error}."
            ) from None
        return validate(cls, content, str(name))

    def save(self, path: Path) -> None:
        """Writes it as JSON, one line for each network.

        Raises:
            UsageError: the file cannot be written.
        """
        head = self.model_dump_json(exclude={"networks"})
        lines = ",\n".join(network.model_dump_json() for network in self.networks)
        with writing(path):
            write_atomically(path, f'{head[:-1]},"networks":[\n{lines}\n]}}\n')

    @property
    def archs(self) -> list[ArchConfig]:
        """Of the networks, in order."""
        return [network.arch for network in self.networks]

    @property
    def latency_ms(self) -> np.ndarray:
        """(n,) measured medians in milliseconds."""
        return np.array([network.latency_ms for network in self.networks])

    @property
    def regime(self) -> Regime:
        """How many images of how many classes the networks were trained on."""
        classes = self.classes or max(2, self.archs[0].num_classes)
        return Regime(images=max(self.images or self.recipe.images, classes), classes=classes)

    @property
    def source(self) -> str:
        """The data and their regime: networks of equal sources were trained on the same images by one recipe."""
        return f"{self.data} ({self.regime})"

    def labels(self) -> list[dict[int, float]]:
        """For each network and seed the accuracy in percent that its cross-entropy stands for; higher is better.

        The accuracy of one training is noisy: a few hundred images decide. Its cross-entropy, which uses all of them,
        orders the networks with less noise; one line through all trainings puts it in percent. Where the two do not
        clearly fall together, as with images so few that networks overfit, accuracies are taken as they are.
        """
        scores = [training.score for network in self.networks for training in network.trainings]
        loss, accuracy = np.array([(s.cross_entropy, 100 * s.accuracy) for s in scores]).T
        # where all are equal a correlation is NaN, with a warning
        if np.ptp(loss) and np.ptp(accuracy) and np.corrcoef(loss, accuracy)[0, 1] > MAX_CORRELATION:
            return [{t.seed: 100 * t.score.accuracy for t in network.trainings} for network in self.networks]
        slope, level = np.polyfit(loss, accuracy, 1) if np.ptp(loss) else (0.0, accuracy.mean())
        return [
            {t.seed: float(level + slope * t.score.cross_entropy) for t in network.trainings}
            for network in self.networks
        ]

    def truth(self) -> tuple[np.ndarray, np.ndarray]:
        """(n,) mean labels in percent, and (n,) their standard errors, higher is better.

        What a seed adds to all networks alike is taken out. How much trainings of one network still differ is pooled
        over those with several seeds, and divided by the root of a network's number of seeds; where too few have
        several it is not known, and counts as 0. To that comes what the choice of the validation images does, where
        their number is known: all networks see the same, and cross-entropy tells them apart with half the noise of an
        accuracy.
        """
        runs = self.labels()
        counts = np.array([len(seeds) for seeds in runs])
        means = np.array([np.mean(list(seeds.values())) for seeds in without_seed_effects(runs)])
        by_seed = np.nan_to_num(seed_sd(runs)) / np.sqrt(counts)
        if self.validation_images is None:
            return means, by_seed
        # labels on a line may lie beyond 0 and 100 %, and at these ends the binomial error would be 0
        share = np.clip(means / 100, 0.5 / self.validation_images, 1 - 0.5 / self.validation_images)
        return means, np.hypot(by_seed, 100 * PAIRED * np.sqrt(share * (1 - share) / self.validation_images))

    @property
    def origin(self) -> str:
        """A clause that names where predictions from this table come from."""
        recipe = self.recipe
        width = "" if recipe.width == 1 else f" at {100 * recipe.width:g} % of their width"
        devices = {training.device for network in self.networks for training in network.trainings}
        where = "" if devices == {"cpu"} else f", on {' and '.join(sorted(devices))}"
        count = len(self.networks)
        return f"{count} EfficientViTs trained on {self.source} at {recipe.image_size} px{width}{where}"


def shipped_tables() -> dict[str, Path]:
    """Name and path of every table that comes with the package."""
    package = Path(evit_nas.__file__).parent
    installed = package / "labels"  # inside the wheel; in a checkout they lie among the benchmarks
    folder = installed if installed.is_dir() else package.parent / "benchmarks" / "labels"
    return {path.stem: path for path in sorted(folder.glob("*.json"))}
