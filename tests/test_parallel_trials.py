"""What an experiment hands to its workers; the test stands for them, for Tune, and for what brings the calls."""

from __future__ import annotations

import asyncio
import os
from threading import Event
from types import SimpleNamespace

import pytest

from evit_nas.config import ClusterSettings
from evit_nas.errors import UsageError
from tests.searches import new_run

pytest.importorskip("ray")

from evit_nas.searching.parallel import Cluster, devices, trials
from evit_nas.searching.parallel.trials import Call, CallResult, Experiment


@pytest.mark.parametrize(("assigned", "seen"), [({"CPU": 1}, ""), ({"CPU": 1, "GPU": 0.5}, "3")])
def test_a_trial_sees_the_gpus_that_are_assigned_to_it_alone(monkeypatch, assigned, seen):
    me = SimpleNamespace(get_assigned_resources=lambda: assigned, get_node_id=lambda: "here")
    nodes = [{"NodeID": "here", "Resources": {}}]
    monkeypatch.setattr(devices, "ray", SimpleNamespace(get_runtime_context=lambda: me, nodes=lambda: nodes))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")  # as Ray has it where it assigns one, and whatever else before
    devices.settle.__wrapped__()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen


def test_a_cluster_that_asks_for_a_token_is_one_message_with_the_way_out(monkeypatch, tmp_path):
    from ray.exceptions import AuthenticationError

    def init(*args, **options):
        raise AuthenticationError("no token was found")

    monkeypatch.setattr("ray.init", init)
    run = new_run(tmp_path / "run", engine="ray", cluster={"address": "127.0.0.1:6379"})
    with pytest.raises(UsageError, match=r"at --address 127.0.0.1:6379: no token was found\. .*ray get-auth-token"):
        Cluster(run.settings, run.path, print)


class Idle:
    """In the place of a Tuner: runs no trials, until it is told to end."""

    over = Event()

    def __init__(self, trainable, **options): ...

    def fit(self):
        self.over.wait()


async def begun(experiment: Experiment) -> list[int]:
    """Which of five calls that come in another order each worker takes: one that dies, then one that answers all."""
    answers = [asyncio.create_task(experiment.answer(number, Call(abs, (number,), {}))) for number in (3, 1, 4, 0, 2)]
    await asyncio.sleep(0)
    taken = [await experiment.take("dies")]
    experiment.died("dies")
    await asyncio.sleep(0)
    for _ in answers:
        taken.append(await experiment.take("lives"))
        await experiment.give("lives", CallResult(taken[-1].args[0]))
    assert [outcome.value for outcome in await asyncio.gather(*answers)] == [3, 1, 4, 0, 2]
    return [call.args[0] for call in taken]


def test_calls_begin_in_the_order_of_submission_in_whichever_ray_brings_them(monkeypatch, tmp_path):
    monkeypatch.setattr(trials.tune, "Tuner", Idle)

    async def found() -> list[int]:
        try:
            return await begun(Experiment("name", ClusterSettings(), str(tmp_path), 1))
        finally:
            Idle.over.set()  # else the thread that runs it keeps the loop from closing

    assert asyncio.run(found()) == [0, 0, 1, 2, 3, 4]


def test_a_worker_that_was_busy_as_the_experiment_ended_is_told_to_end_when_it_comes_back(monkeypatch, tmp_path):
    """And gets none of the calls that are still waiting: Tune would wait for it, and Ctrl-C for Tune."""
    monkeypatch.setattr(trials.tune, "Tuner", Idle)
    Idle.over.clear()

    async def found() -> Call | None:
        experiment = Experiment("name", ClusterSettings(), str(tmp_path), 1)
        answers = [asyncio.create_task(experiment.answer(number, Call(abs, (number,), {}))) for number in (0, 1)]
        await asyncio.sleep(0)
        await experiment.take("busy")
        ending = asyncio.create_task(experiment.end())
        await asyncio.sleep(0)
        await experiment.give("busy", CallResult(0))
        try:
            return await asyncio.wait_for(experiment.take("busy"), timeout=5)
        finally:
            Idle.over.set()
            await ending
            for answer in answers:
                answer.cancel()

    assert asyncio.run(found()) is None
