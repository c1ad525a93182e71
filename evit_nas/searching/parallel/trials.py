"""Calls of functions on a cluster: Ray Tune runs the workers, each of them a trial that answers one call after another.

The search stays in charge of what is evaluated, in which order, and of what goes on record (`study.db`). Tune gets what
it is good at: resources for each trial, trials that begin anew on another node when theirs dies, and a folder in which
Ray's own tools find what ran. What Ray 2.60 does that shapes this file:

* `OptunaSearch` knows no constraints, leaves trials with NaN RUNNING for ever and, restored, repeats some. So Optuna
  proposes outside (`rounds.py`), Tune searches nothing, and nothing of Tune is ever restored.
* A trial for each candidate was tried. It costs Tune 40 ms, and a process is used again only by taking the trial from
  one that is just starting, which is then ended: with calls that are shorter than such a start, one process did all.
* A driver that is connected by ray:// would send a Tuner, pickled, to the cluster. So the Tuner always lives in an
  actor, and the driver talks to that alone.
* A killed Tuner never gives back the cores that it reserved; one that is told to stop does, after ten seconds.
* The error of a call is an answer: the network is to blame, and would be on another node. What Tune calls a failure is
  the death of a process or a node, and the call is then given to another worker.
* An actor that answers many calls at a time is brought them in any order: of a thousand that waited for its start, up
  to a hundred came before the first. So the driver numbers them, and the lowest number goes first.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

import ray
from ray import tune

from evit_nas import __version__
from evit_nas.errors import MeasurementError, UsageError
from evit_nas.searching.parallel.devices import settle

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

    from evit_nas.config import ClusterSettings

DEATHS = 100  # of one worker: nodes may come and go for days, but it must end if none of them can run it
REPORT_S = 30.0  # between two reports of a worker: Tune takes about twenty a second, of all workers together
QUIETLY = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths, as of --data, stay what they are
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # of Tune's own state
}


@dataclass(frozen=True)
class Call:
    """A function that every node can import, and what it is called with."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    version: str = __version__


@dataclass(frozen=True)
class CallResult:
    """What a call came to."""

    value: Any = None
    error: Exception | None = None


@dataclass(order=True)
class _Asked:
    """A call that the driver waits for, and how often it died; what was submitted first sorts first."""

    number: int
    call: Call = field(compare=False)
    answer: asyncio.Future[CallResult] = field(compare=False)
    deaths: int = field(default=0, compare=False)


class Experiment:
    """The actor that runs the Tuner, and hands out the calls; it may be asked for thousands at a time.

    Args:
        name: of the actor, and of the experiment's folder.
        cluster: what a trial needs.
        storage: where that folder is.
        workers: trials.
    """

    def __init__(self, name: str, cluster: ClusterSettings, storage: str, workers: int) -> None:
        # all may wait at once: Tune's own limit is 200, or 1.1 a core where that is more, with a warning
        os.environ.update(QUIETLY, TUNE_MAX_PENDING_TRIALS_PG=str(workers))
        self._max_failures, self._loop, self.over = cluster.max_failures, asyncio.get_event_loop(), False
        self._waiting: list[_Asked] = []  # a heap
        self._begun: dict[str, _Asked] = {}
        self._idle: dict[str, asyncio.Future[Call | None]] = {}
        hook = _Hook(self)
        tuner = tune.Tuner(
            tune.with_resources(_work, {"cpu": cluster.cpus_per_trial, "gpu": cluster.gpus_per_trial}),
            param_space={"experiment": name},
            tune_config=tune.TuneConfig(num_samples=workers, trial_dirname_creator=lambda trial: trial.trial_id),
            run_config=tune.RunConfig(
                name=name,
                storage_path=storage,
                failure_config=tune.FailureConfig(max_failures=DEATHS),
                callbacks=[hook],
                stop=hook,
                verbose=0,
            ),
        )
        self._running = asyncio.ensure_future(asyncio.to_thread(tuner.fit))

    async def answer(self, number: int, call: Call) -> CallResult:
        """What the call came to, once a worker has answered it; raises what Tune died of."""
        asked = _Asked(number, call, self._loop.create_future())
        heappush(self._waiting, asked)
        self._hand_out()
        either: list[asyncio.Future[Any]] = [asked.answer, self._running]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not asked.answer.done():
            self._running.result()
            raise RuntimeError("no worker is left; why they ended is in the folder of the experiment")
        return asked.answer.result()

    async def take(self, worker: str) -> Call | None:
        """The next call for a worker, as soon as there is one; None tells it to end."""
        if self.over:  # it was busy when the others were told, or has only come up
            return None
        idle: asyncio.Future[Call | None] = self._loop.create_future()
        self._idle[worker] = idle
        self._hand_out()
        return await idle

    async def give(self, worker: str, outcome: CallResult) -> None:
        """Takes the answer of a worker to its call."""
        if (asked := self._begun.pop(worker, None)) is not None:
            asked.answer.set_result(outcome)

    async def end(self) -> None:
        """Ends every trial, and gives back what they held; a killed actor would not."""
        self.over = True
        for waiting in self._idle.values():
            waiting.set_result(None)
        await asyncio.wait([self._running])

    def died(self, worker: str) -> None:
        """Gives the call of a dead worker to another one; called by the thread of Tune."""
        self._loop.call_soon_threadsafe(self._bury, worker)

    def _hand_out(self) -> None:
        while self._waiting and self._idle:
            worker, idle = self._idle.popitem()
            asked = heappop(self._waiting)
            self._begun[worker] = asked
            idle.set_result(asked.call)

    def _bury(self, worker: str) -> None:
        self._idle.pop(worker, None)
        asked = self._begun.pop(worker, None)
        if asked is None:
            return
        asked.deaths += 1
        if asked.deaths <= self._max_failures:
            heappush(self._waiting, asked)
            self._hand_out()
        else:
            lost = f"its process or its node died {asked.deaths} times (--max-failures {self._max_failures})"
            asked.answer.set_result(CallResult(error=MeasurementError(lost, "crashed")))


class _Hook(tune.Callback, tune.Stopper):
    """What Tune asks and tells the experiment."""

    def __init__(self, experiment: Experiment | None = None) -> None:
        self._experiment = experiment

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()  # Tune writes its Tuner to the storage path, where nobody reads it

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A process or a node died; the trial begins anew."""
        assert self._experiment is not None
        self._experiment.died(trial.trial_id)

    on_trial_error = on_trial_recover  # or it does not

    def stop_all(self) -> bool:
        """Whether Tune should end everything now."""
        return self._experiment is not None and self._experiment.over

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether Tune should end one trial: each ends by itself."""
        return False


def _work(config: dict[str, Any]) -> None:
    """The trainable: answers calls until there are no more."""
    settle()
    experiment, me = ray.get_actor(config["experiment"]), tune.get_context().get_trial_id()
    reported, answered = time.monotonic(), 0
    while (call := _ask(experiment.take, me)) is not None:
        outcome = _outcome(call)
        _ask(experiment.give, me, outcome)
        answered += 1
        if time.monotonic() - reported >= REPORT_S:
            tune.report({"answered": answered, **_figures(outcome.value)})
            reported = time.monotonic()
    tune.report({"answered": answered})


def _ask(method: Any, *args: Any) -> Any:
    answer: ray.ObjectRef[Any] = method.remote(*args)
    return ray.get(answer)


def _outcome(call: Call) -> CallResult:
    if call.version != __version__:
        wrong = f"a node of the cluster has evit-nas {__version__}, the search {call.version}: install the same there."
        return CallResult(error=UsageError(wrong))
    try:
        return CallResult(call.function(*call.args, **call.kwargs))
    except Exception as error:
        return CallResult(error=error)


def _figures(value: Any) -> dict[str, float]:
    """The numbers in an answer, for Ray's tools."""
    shown = value if isinstance(value, dict) else getattr(value, "score", None) or {}
    return {str(name): found for name, found in dict(shown).items() if isinstance(found, int | float)}
