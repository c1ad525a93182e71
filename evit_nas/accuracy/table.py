"""Tables of trained networks that travel with the package, so that a new score can be tested in seconds.

Every network in them cost minutes: latency, proxies, and for each seed accuracy, cross-entropy and the loss curve.
Written by `evit-nas proxies bench --export`, and read by its `--from-table` and by the default score.
"""

from __future__ import annotations

from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from evit_nas.accuracy import ShortScore
from evit_nas.arch import ArchConfig
from evit_nas.config import ShortRecipe
from evit_nas.errors import UsageError, did_you_mean
from evit_nas.runs import write_atomically


class Training(BaseModel):
    """One network trained with one seed."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    seed: int
    """Of the weights and of the order of the images."""
    score: ShortScore
    """What the training came to."""
    seconds: float
    """Time it took."""


class TrainedNetwork(BaseModel):
    """One network with its trainings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

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
    device: str
    """What the latencies were measured on."""
    networks: Annotated[tuple[TrainedNetwork, ...], Field(min_length=1)]
    """Each once."""

    @classmethod
    def load(cls, name: str | Path) -> LabelTable:
        """A table of the package by name, or any file by path.

        Raises:
            UsageError: there is none, or it is no such table.
        """
        path = shipped_tables().get(str(name), Path(name))
        try:
            text = path.read_text()
        except OSError as error:
            raise UsageError(
                f"cannot read the table {name}: {error.strerror}. {did_you_mean(str(name), shipped_tables())}"
            ) from None
        try:
            return cls.model_validate_json(text)
        except ValueError as error:
            raise UsageError(
                f"{name} is not a table of trained networks; `evit-nas proxies bench --export` writes one ({error})."
            ) from None

    def save(self, path: Path) -> None:
        """Writes it as JSON, one line for each network.

        Raises:
            UsageError: the file cannot be written.
        """
        head = self.model_dump_json(exclude={"networks"})
        lines = ",\n".join(network.model_dump_json() for network in self.networks)
        try:
            write_atomically(path, f'{head[:-1]},"networks":[\n{lines}\n]}}\n')
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}.") from None

    @property
    def archs(self) -> list[ArchConfig]:
        """Of the networks, in order."""
        return [network.arch for network in self.networks]

    @property
    def latency_ms(self) -> np.ndarray:
        """(n,) measured medians."""
        return np.array([network.latency_ms for network in self.networks])

    def runs(self, what: str = "accuracy") -> list[list[float]]:
        """For each network and seed its "accuracy", or minus its "cross_entropy" or "tse": higher is better."""
        sign = 1 if what == "accuracy" else -1
        return [[sign * getattr(t.score, what) for t in network.trainings] for network in self.networks]

    @cached_property
    def points_per_nat(self) -> tuple[float, float]:
        """(a, b) of the line accuracy = a - b cross-entropy through all trainings, in percent."""
        scores = [training.score for network in self.networks for training in network.trainings]
        loss, accuracy = np.array([(s.cross_entropy, 100 * s.accuracy) for s in scores]).T
        slope, level = np.polyfit(loss, accuracy, 1) if np.ptp(loss) else (0.0, accuracy.mean())
        return float(level), float(-slope)

    def labels(self) -> list[list[float]]:
        """For each network and seed the accuracy in percent that its cross-entropy stands for.

        The accuracy of one training is noisy: a few hundred images decide. Its cross-entropy, which uses all of them,
        orders the networks with less noise; one line through all trainings puts it in percent.
        """
        level, slope = self.points_per_nat
        return [[level + slope * value for value in values] for values in self.runs("cross_entropy")]

    def truth(self) -> tuple[np.ndarray, np.ndarray]:
        """(n,) mean labels in percent, and their standard errors: those of one seed are as noisy as seeds differ."""
        labels = self.labels()
        means, counts = np.array([np.mean(values) for values in labels]), np.array([len(values) for values in labels])
        within = sum(float(np.sum((np.array(v) - m) ** 2)) for v, m in zip(labels, means, strict=True))
        seed_sd = (within / max(int((counts - 1).sum()), 1)) ** 0.5
        return means, seed_sd / np.sqrt(counts)

    @property
    def origin(self) -> str:
        """A clause that names where predictions from this table come from."""
        recipe = self.recipe
        width = "" if recipe.width == 1 else f" at {100 * recipe.width:g} % of their width"
        return (
            f"{len(self.networks)} EfficientViTs trained on {self.data} at {recipe.image_size} px{width}; not ImageNet"
        )


def shipped_tables() -> dict[str, Path]:
    """Name -> file of the tables that come with the package."""
    packaged = Path(str(files("evit_nas"))) / "labels"
    folder = packaged if packaged.is_dir() else Path(__file__).parents[2] / "benchmarks" / "labels"
    return {path.stem: path for path in sorted(folder.glob("*.json"))}
