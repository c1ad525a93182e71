"""The settings of a search: what `run.yaml` records."""

from __future__ import annotations

import math
import os
import re
from bisect import bisect_right
from itertools import accumulate
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from evit_nas.errors import UsageError
from evit_nas.regime import Regime
from evit_nas.space import SearchSpace

TRIALS = 88  # of a search, if nothing else is said: three dozen until latencies are predicted, then screenings

_PASSWORD = re.compile(r"://[^/@:]*:([^@]+)@|[?&]password=([^&]+)")


def storage_url(storage: str) -> str:
    """What Optuna is to open: `storage` with the environment's values for $NAME.

    Raises:
        UsageError: the environment has no such variable.
    """
    for name in re.findall(r"\$\{?(\w+)", storage):
        if name not in os.environ:
            raise UsageError(f"the storage {storage} takes ${name} from the environment, which does not have it.")
    return os.path.expandvars(storage)


class Conditions(BaseModel):
    """Everything besides the network and the protocol that a user can choose and that moves the number."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    device: str = "cpu"
    """As given to --device: a name in DEVICES, and after a colon what that device takes."""
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    """Threads the runtime may use for one inference."""
    batch: Annotated[int, Field(ge=1, le=4096)] = 1
    """Images per inference."""
    precision: str = "fp32"
    """Arithmetic of the deployed network."""
    entries: dict[str, str] = Field(default_factory=dict)
    """Session settings handed to the runtime as they are, for example session.set_denormal_as_zero=1."""

    @property
    def family(self) -> str:
        """The device's name in DEVICES."""
        return self.device.partition(":")[0]

    @property
    def argument(self) -> str:
        """What follows the colon in `device`; empty if nothing does."""
        return self.device.partition(":")[2]

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return ", ".join([self.device, threads, f"batch {self.batch}", self.precision, *self.listed_entries])

    @property
    def listed_entries(self) -> list[str]:
        """The free-form entries as `name=value`, in a fixed order."""
        return [f"{name}={value}" for name, value in sorted(self.entries.items())]


class Target(BaseModel):
    """One device that a search measures on, and the latency allowed there."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    conditions: Conditions = Conditions()
    """Device, threads, batch, precision and session entries."""
    budget_ms: Annotated[float, Field(gt=0)]
    """Upper limit of the latency in milliseconds."""

    @property
    def device(self) -> str:
        """As given to --device."""
        return self.conditions.device


class Limits(BaseModel):
    """Limits besides latency, named after what they limit; None leaves one out."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    score: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """The lowest score; all others are upper limits."""
    params: Annotated[int, Field(gt=0)] | None = None
    """Trainable parameters."""
    macs: Annotated[int, Field(gt=0)] | None = None
    """Multiply-accumulates for one image."""
    memory_mb: Annotated[float, Field(gt=0)] | None = None
    """Peak resident memory in megabytes of a fresh process that loads the network on the first device and runs it."""
    energy_mj: Annotated[float, Field(gt=0)] | None = None
    """Millijoules per inference on the first device, above what it draws when idle."""


ObjectiveName = Literal["score", "latency", "params", "macs", "memory", "energy"]
Method = Literal["table", "zero-cost", "predictor", "short", "supernet"]  # where the score comes from
Scheduler = Literal["none", "asha"]
BudgetStat = Literal["median", "p90", "typical"]
Engine = Literal["local", "ray"]


class ShortRecipe(BaseModel):
    """How networks are trained briefly, to be ranked."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    image_size: Annotated[int, Field(ge=64, le=512, multiple_of=16)] = 64
    """Side of the square images in pixels."""
    width: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of each stage's width and Q/K dimension that is trained: a narrower network of the same shape costs a
    fraction, and of the ways to save this is said to be the safest for the order (EcoNAS, arXiv 2001.01233)."""
    images: Annotated[int, Field(ge=2)] = 10_000
    """Training images, a class-balanced choice; the whole training set if it has no more."""
    cycles: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (8,)
    """Epochs of each cosine cycle; a rung ends with each."""
    batch_size: Annotated[int, Field(ge=2)] = 100
    """Images in a step."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    """Highest learning rate of AdamW."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Of AdamW, on matrices and kernels."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are shortened to this norm: linear attention divides by sums that may be small."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """Share of the first cycle in which the learning rate rises."""
    shift: Annotated[float, Field(ge=0, le=0.5)] = 0.08
    """Images are moved by up to this share of their side."""
    flip: bool = True
    """Whether images are mirrored at random."""

    @property
    def epochs(self) -> int:
        """Epochs of all rungs together."""
        return sum(self.cycles)

    @property
    def last_rung(self) -> int:
        """Number of the last rung; they are counted from 0."""
        return len(self.cycles) - 1

    def end_of(self, rung: int) -> int:
        """Epochs when the rung, counted from 0, is over.

        Raises:
            ValueError: there is no such rung.
        """
        if not 0 <= rung <= self.last_rung:
            raise ValueError(f"a rung must be from 0 to {self.last_rung}, got {rung}.")
        return sum(self.cycles[: rung + 1])

    def rate(self, epoch: float) -> float:
        """The learning rate after that many epochs, fractions included: where a cycle ends the next one begins."""
        ends = list(accumulate(self.cycles))
        cycle = min(bisect_right(ends, epoch), self.last_rung)
        start = ends[cycle] - self.cycles[cycle]
        done = min((epoch - start) / self.cycles[cycle], 1)
        rise = self.warmup if cycle == 0 else 0.0
        if done < rise:
            return self.learning_rate * done / rise
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - rise) / (1 - rise)))


class AccuracySettings(BaseModel):
    """How the accuracy of a candidate is estimated."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    method: Method = "zero-cost"
    """table: learned from the trained networks that come with the package, for a regime; zero-cost: ranks of proxies in
    the run's pool; predictor: learned from networks trained in this run; short: every candidate is trained; supernet:
    every candidate is judged with weights that all share."""
    regime: Regime | None = None
    """Images and classes that `table` scores for; None in runs of earlier versions, and where a table is named."""
    table: str | None = None
    """A table of trained networks, of the package or a file, whose regime and own labels `table` scores by."""
    data: str | None = None
    """Images that `predictor` and `short` train on, or whose numbers `table` scores for."""
    labels: Annotated[int, Field(ge=8, le=10_000)] = 30
    """Networks that `predictor` trains."""
    labels_from: tuple[str, ...] = ()
    """Runs whose trained networks are taken over."""
    supernet: str | None = None
    """Folder of the supernet whose weights `supernet` judges by."""
    recipe: ShortRecipe = ShortRecipe()
    """How `predictor` and `short` train networks."""
    scheduler: Scheduler = "none"
    """asha: `short` goes on to the next rung with the best third of what has about the same latency; none: it trains
    all to the end."""

    @model_validator(mode="after")
    def _check(self) -> AccuracySettings:
        if self.method in ("predictor", "short") and self.data is None:
            raise ValueError(f"the accuracy method '{self.method}' trains networks and needs data: add --data PATH")
        if self.method == "supernet" and self.supernet is None:
            raise ValueError(
                "the accuracy method 'supernet' needs one: add --supernet FOLDER, as evit-nas supernet train makes it"
            )
        if self.scheduler == "asha" and self.recipe.last_rung == 0:
            raise ValueError("the scheduler 'asha' needs a recipe with several cycles, for example cycles: [1, 2, 6]")
        return self


class ClusterSettings(BaseModel):
    """Where and with what Ray runs trials. Moves no number, but more threads may move the last digits of a score."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    address: str | None = None
    """auto, ray://HOST:10001 or HOST:6379; None starts Ray on this machine for as long as the search takes."""
    cpus_per_trial: Annotated[float, Field(gt=0)] = 1
    """Cores, and threads, of a trial."""
    gpus_per_trial: Annotated[float, Field(ge=0)] = 0
    """GPUs that Ray reserves for a trial."""
    concurrent: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Trials at a time; None for as many as there are cores for when the search starts."""
    max_failures: Annotated[int, Field(ge=0, le=1000)] = 3
    """How often a trial begins anew because its process or its node died."""
    storage_path: str | None = None
    """Where checkpoints and Tune's own files go: a folder that all nodes share, or the URI of a bucket; None is a
    folder of the run."""


class SearchSettings(BaseModel):
    """Everything that a user decides about a search; with equal settings and latencies two runs do the same."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    space_name: str
    """Name or path the space was loaded from."""
    space: SearchSpace
    """The space itself, so that a run folder stands on its own."""
    targets: tuple[Target, ...]
    """Where latency is measured, and how much of it is allowed there; the first one names the front's files."""
    budget_stat: BudgetStat = "median"
    """What must keep the budget: the median latency on the quiet machine, its 90th percentile there, or the typical
    one, the median by the wall clock on the machine as it was."""
    limits: Limits = Limits()
    """Limits on the score, parameters, MACs, memory and energy."""
    objectives: tuple[ObjectiveName, ...] = ("score", "latency")
    """What is optimised; the front is what nothing beats in all of them."""
    trials: Annotated[int, Field(ge=1, le=1_000_000)] = TRIALS
    """Distinct architectures to evaluate, the reference pool included."""
    accuracy: AccuracySettings = AccuracySettings()
    """How the accuracy of a candidate is estimated."""
    sampler: str = "auto"
    """What proposes candidates: a name in SAMPLERS; auto screens thousands by prediction where score and latency are
    predicted, and is TPE elsewhere."""
    workers: Annotated[int, Field(ge=0, le=1024)] = 0
    """Processes that score or train candidates beside the one that measures; 0 does it in turns. Moves no number."""
    engine: Engine = "local"
    """What runs them: processes of this machine, or Ray. Moves no number."""
    cluster: ClusterSettings = ClusterSettings()
    """What Ray should know. Moves no number, so a run may be resumed on another cluster."""
    storage: str | None = None
    """Where Optuna keeps the study: the URL of a database or of Redis, or a file for a journal; $NAME stands for a
    value of the environment. None is a database in the run folder."""
    together: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Candidates in a round, which know nothing of each other: about as many as are evaluated at a time. None is four,
    which is enough for eight. Moves the proposals, so it stays with the run."""
    time_s: Annotated[float, Field(gt=0)] | None = None
    """Seconds after which no new candidate is begun; None leaves that to `trials`."""
    patience: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Architectures without growth of the front (in hypervolume, by 0.1 %) after which a search ends."""
    front_size: Annotated[int, Field(ge=1, le=1000)] = 16
    """Most members of the front; a longer one is thinned out evenly."""
    pool: Annotated[int, Field(ge=4, le=10_000)] = 40
    """Random architectures evaluated first: the pool against which proxies are ranked. Where a screening proposes,
    only as many of them as predictions of latency take."""
    seed: Annotated[int, Field(ge=0, le=2**31)] = 0
    """Seed of sampling and of every proxy."""

    @model_validator(mode="after")
    def _check(self) -> SearchSettings:
        if not self.targets:
            raise ValueError("targets must name at least one device")
        if not self.objectives:
            raise ValueError("objectives must name at least one")
        names = [target.device for target in self.targets]
        if self.storage and (found := _PASSWORD.search(self.storage)) and not (found[1] or found[2]).startswith("$"):
            raise ValueError(
                "the storage has a password, which run.yaml would keep: write $NAME in its place and set that variable"
            )
        given: dict[str, list[str]] = {"device can be a target": names, "objective can be given": [*self.objectives]}
        for what, chosen in given.items():
            if twice := next((name for name in chosen if chosen.count(name) > 1), None):
                raise ValueError(f"each {what} once, got '{twice}' twice")
        return self
