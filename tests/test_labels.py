"""Labels: each trained once and written down at once, whatever is killed on the way."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import torch

from evit_nas.accuracy import ShortScore
from evit_nas.accuracy.short import ShortTraining
from evit_nas.arch import ArchConfig
from evit_nas.config import ShortRecipe
from evit_nas.data.cache import load_dataset
from evit_nas.data.dataset import Dataset
from evit_nas.errors import EvitNasError, MeasurementError, UsageError
from evit_nas.searching.labelling import labels
from evit_nas.searching.labelling.labels import Job, Label, Labels
from tests.networks import tiny_arch
from tests.processes import children_of, wait_until
from tests.trainings import write_shades

RECIPE = ShortRecipe(images=20, cycles=(1, 2), batch_size=10)
ONE, OTHER, THIRD = tiny_arch(mixer="none"), tiny_arch(mixer="none", ffn_ratio=1.0), tiny_arch(mixer="none", depth=2)


class Trainer:
    """Stands for `_train`: a label at once, and a record of what was asked."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.checkpoints: list[Path] = []
        self.failures: dict[str, Exception] = {}

    def __call__(self, data: str, digest: str, recipe: ShortRecipe, job: Job, checkpoint: Path) -> Label:
        self.jobs.append(job)
        self.checkpoints.append(checkpoint)
        if job.arch.key in self.failures:
            raise self.failures[job.arch.key]
        checkpoint.parent.mkdir(exist_ok=True)
        checkpoint.write_text("")
        return label_of(job)


def label_of(job: Job) -> Label:
    score = ShortScore(accuracy=0.5, cross_entropy=1 + job.seed, curve=(1.0,) * RECIPE.end_of(job.rung))
    return Label(arch=job.arch, seed=job.seed, score=score, seconds=1.0)


@pytest.fixture
def trainer(monkeypatch) -> Trainer:
    trainer = Trainer()
    monkeypatch.setattr(labels, "_train", trainer)
    monkeypatch.setattr(labels, "worker_pool", ThreadPoolExecutor)
    monkeypatch.setattr(labels, "end", lambda pool: pool.shutdown())
    return trainer


def kept(folder: Path, digest: str = "abc", recipe: ShortRecipe = RECIPE) -> Labels:
    return Labels(folder, "digits", digest, recipe)


def collect(found: Labels, jobs: list[Job], workers: int = 1) -> tuple[list[Job], list[str]]:
    """The jobs that were told of, and the notes."""
    told: list[Job] = []
    notes: list[str] = []
    found.collect(jobs, workers, lambda job, _: told.append(job), notes.append)
    return told, notes


def test_labels_are_known_by_network_and_seed_at_their_rung(tmp_path, trainer):
    jobs = [Job(ONE, 0, 1), Job(ONE, 1, 1), Job(OTHER, 0, 1)]
    assert collect(kept(tmp_path), jobs) == (jobs, [])
    assert kept(tmp_path).known() == {(job.arch.key, job.seed): label_of(job) for job in jobs}
    assert kept(tmp_path).known(rung=1) == kept(tmp_path).known()
    assert kept(tmp_path).known(rung=0) == {}


def test_labels_of_two_devices_are_never_mixed_without_a_word(tmp_path, trainer, monkeypatch):
    collect(kept(tmp_path), [Job(ONE, 0, 1)])
    monkeypatch.setattr(labels, "_train", lambda *args: trainer(*args).model_copy(update={"device": "a GPU"}))
    _, notes = collect(kept(tmp_path), [Job(ONE, 1, 1), Job(OTHER, 0, 1)])
    assert notes == ["trained on a GPU, others on cpu: their digits differ a little"]
    assert [label.device for label in kept(tmp_path).known().values()] == ["cpu", "a GPU", "a GPU"]


def test_labels_of_earlier_versions_were_trained_on_the_processor(tmp_path, trainer):
    collect(kept(tmp_path), [Job(ONE, 0, 1)])
    path = tmp_path / "labels.jsonl"
    (record,) = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    assert record["label"].pop("device") == "cpu"
    record.pop("sum", None)
    path.write_text(json.dumps(record) + "\n", encoding="utf-8")
    (label,) = kept(tmp_path).known().values()
    assert label.device == "cpu"


def test_nothing_is_trained_twice(tmp_path, trainer):
    collect(kept(tmp_path), [Job(ONE, 0, 1)])
    told, _ = collect(kept(tmp_path), [Job(OTHER, 0, 1), Job(ONE, 0, 1), Job(OTHER, 0, 1)])
    assert told == [Job(OTHER, 0, 1)]
    assert trainer.jobs == [Job(ONE, 0, 1), Job(OTHER, 0, 1)]


def test_equal_networks_are_trained_once(tmp_path, trainer):
    same = tiny_arch(mixer="none", window=3)  # without attention the window means nothing
    assert same != ONE
    assert same.key == ONE.key
    collect(kept(tmp_path), [Job(ONE, 0, 1), Job(same, 0, 1)], workers=2)
    assert [job.arch.key for job in trainer.jobs] == [ONE.key]


def test_trainings_begin_in_the_order_asked_and_no_more_at_a_time_than_workers(tmp_path, trainer, monkeypatch):
    lock, running, most = threading.Lock(), 0, 0

    def slow(data: str, digest: str, recipe: ShortRecipe, job: Job, checkpoint: Path) -> Label:
        nonlocal running, most
        with lock:
            trainer.jobs.append(job)
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1
        return label_of(job)

    monkeypatch.setattr(labels, "_train", slow)
    monkeypatch.setattr(labels, "worker_pool", lambda count: ThreadPoolExecutor(8))
    jobs = [Job(arch, seed, 1) for seed in range(3) for arch in (ONE, OTHER, THIRD)]
    collect(kept(tmp_path), jobs, workers=2)
    assert most == 2
    assert set(trainer.jobs) == set(jobs)
    assert all(abs(trainer.jobs.index(job) - jobs.index(job)) <= 1 for job in jobs)


def test_a_label_is_on_the_disk_before_anybody_is_told_of_it(tmp_path, trainer):
    def step(job: Job, label: Label) -> None:
        assert kept(tmp_path).known()[job.arch.key, job.seed] == label

    kept(tmp_path).collect([Job(ONE, 0, 1), Job(OTHER, 0, 1)], 1, step, print)


def test_rungs_have_labels_of_their_own_and_share_a_checkpoint_that_goes_with_the_last(tmp_path, trainer):
    found = kept(tmp_path)
    collect(found, [Job(ONE, 0, 0)])
    assert len(found.known(rung=0)[ONE.key, 0].score.curve) == 1
    assert found.known() == {}
    (checkpoint,) = set(trainer.checkpoints)
    assert checkpoint.exists()
    collect(found, [Job(ONE, 0, 1)])
    assert len(found.known()[ONE.key, 0].score.curve) == 3
    assert len(found.known(rung=0)) == 1
    assert set(trainer.checkpoints) == {checkpoint}
    assert not checkpoint.exists()


def test_networks_and_seeds_have_checkpoints_of_their_own(tmp_path, trainer):
    collect(kept(tmp_path), [Job(ONE, 0, 0), Job(ONE, 1, 0), Job(OTHER, 0, 0)])
    assert len(set(trainer.checkpoints)) == 3


@pytest.mark.parametrize(
    "failure", [MeasurementError("its loss is nan"), RuntimeError("can't allocate memory"), MemoryError("no memory")]
)
def test_a_network_that_cannot_be_trained_is_left_out_with_the_reason(tmp_path, trainer, failure):
    trainer.failures[ONE.key] = failure
    told, notes = collect(kept(tmp_path), [Job(ONE, 0, 1), Job(OTHER, 0, 1)])
    assert told == [Job(OTHER, 0, 1)]
    assert notes == [f"left out: {ONE.key}: {failure}"]


def test_a_training_that_diverged_is_not_tried_again_and_one_that_found_no_memory_is(tmp_path, trainer):
    trainer.failures = {ONE.key: MeasurementError("its loss is nan"), OTHER.key: MemoryError("no memory")}
    collect(kept(tmp_path), [Job(ONE, 0, 1), Job(OTHER, 0, 1)])
    trainer.failures.clear()
    told, notes = collect(kept(tmp_path), [Job(ONE, 0, 1), Job(OTHER, 0, 1), Job(ONE, 1, 1)])
    assert told == [Job(OTHER, 0, 1), Job(ONE, 1, 1)]
    assert notes == [f"left out: {ONE.key}: its loss is nan"]


def test_a_worker_that_dies_is_an_error_with_the_way_out_and_costs_no_label(tmp_path, trainer):
    trainer.failures[OTHER.key] = BrokenProcessPool("died")
    with pytest.raises(EvitNasError, match=r"a training process died.* run the same command again.* --workers"):
        collect(kept(tmp_path), [Job(ONE, 0, 1), Job(OTHER, 0, 1), Job(THIRD, 0, 1)])
    assert list(kept(tmp_path).known()) == [(ONE.key, 0)]


def test_a_label_torn_by_a_kill_is_trained_again(tmp_path, trainer):
    collect(kept(tmp_path), [Job(ONE, 0, 1), Job(OTHER, 0, 1)])
    path = tmp_path / "labels.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert list(kept(tmp_path).known()) == [(ONE.key, 0)]
    told, _ = collect(kept(tmp_path), [Job(ONE, 0, 1), Job(OTHER, 0, 1)])
    assert told == [Job(OTHER, 0, 1)]
    assert len(kept(tmp_path).known()) == 2


def test_labels_of_equal_data_and_recipe_are_adopted_once_at_every_rung(tmp_path, trainer):
    collect(kept(tmp_path / "a"), [Job(ONE, 0, 0), Job(OTHER, 0, 0)])
    collect(kept(tmp_path / "a"), [Job(ONE, 0, 1)])
    collect(kept(tmp_path / "b"), [Job(OTHER, 0, 0)])
    (tmp_path / "a" / "labels.jsonl").open("a").write((tmp_path / "a" / "labels.jsonl").read_text())  # each twice
    other = labels.Journal(tmp_path / "a" / "labels.jsonl")
    own = tmp_path / "b" / "labels.jsonl"
    for _ in range(2):
        kept(tmp_path / "b").adopt(other)
        assert len(own.read_text().splitlines()) == 3
    assert kept(tmp_path / "b").known() == kept(tmp_path / "a").known()
    assert kept(tmp_path / "b").known(rung=0) == kept(tmp_path / "a").known(rung=0)
    assert collect(kept(tmp_path / "b"), [Job(ONE, 0, 1)]) == ([], [])


@pytest.mark.parametrize(
    ("digest", "recipe"), [("other", RECIPE), ("abc", RECIPE.model_copy(update={"learning_rate": 1e-3}))]
)
def test_labels_of_other_data_or_another_recipe_are_neither_adopted_nor_known(tmp_path, trainer, digest, recipe):
    collect(kept(tmp_path / "a"), [Job(ONE, 0, 1)])
    kept(tmp_path / "b", digest, recipe).adopt(labels.Journal(tmp_path / "a" / "labels.jsonl"))
    assert not (tmp_path / "b" / "labels.jsonl").exists()
    assert kept(tmp_path / "a", digest, recipe).known() == {}


def test_the_format_of_a_label_is_that_of_earlier_runs(tmp_path):
    """Hours of training lie in such files: ids and fields are not to change."""
    line = (
        '{"id":"label:%s:%s","label":{"arch":%s,"seed":3,'
        '"score":{"accuracy":0.5,"cross_entropy":4.0,"curve":[1.0,1.0,1.0]},"seconds":1.0}}\n'
    )
    (tmp_path / "labels.jsonl").write_text(line % (ONE.key, "02dc341c94e6", ONE.model_dump_json()))
    assert kept(tmp_path).known() == {(ONE.key, 3): label_of(Job(ONE, 3, 1))}


LONG = RECIPE.model_copy(update={"cycles": (8,)})


@pytest.fixture
def digits() -> Dataset:
    return load_dataset("digits", 64)


def trained_here(data: Dataset, arch: ArchConfig) -> ShortScore:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return ShortTraining(data, LONG).run(arch, 0)
    finally:
        torch.set_num_threads(threads)


def test_images_that_are_not_those_of_the_labels_are_refused(digits):
    with pytest.raises(UsageError, match=f"the images of digits have changed: .* digest abc, these {digits.digest}"):
        labels._training("digits", "abc", RECIPE)


def test_a_worker_maps_what_was_decoded_and_does_not_look_through_the_images(tmp_path, walks):
    """Each batch of labels has workers of its own, and a listing of ImageNet takes each of them a minute."""
    folder = str(write_shades(tmp_path / "shades"))
    digest = load_dataset(folder, RECIPE.image_size).digest
    labels._training(folder, digest, RECIPE)
    assert walks == ["shades"]


@pytest.mark.slow
def test_a_killed_worker_costs_at_most_an_epoch_and_leaves_no_process(tmp_path, digits):
    found, checkpoint = kept(tmp_path, digits.digest, LONG), []

    def kill() -> None:
        wait_until(lambda: list(tmp_path.glob("checkpoints/*.pt")))
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGKILL)
        checkpoint.extend(tmp_path.glob("checkpoints/*.pt"))

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(EvitNasError, match="a training process died"):
        collect(found, [Job(ONE, 0, 0)])
    killer.join()
    assert not multiprocessing.active_children()
    done = torch.load(checkpoint[0], weights_only=True)["curve"]
    collect(found, [Job(ONE, 0, 0)])
    score = found.known()[ONE.key, 0].score
    assert score == trained_here(digits, ONE)
    assert done == list(score.curve[: len(done)])
    assert not list(tmp_path.glob("checkpoints/*"))


@pytest.mark.slow
def test_a_killed_search_costs_at_most_an_epoch_and_leaves_no_process(tmp_path, digits):
    """And worker processes come to the scores of this one."""
    code = f"""
from pathlib import Path
from tests.test_labels import *
if __name__ == "__main__":
    collect(kept(Path({str(tmp_path)!r}), {digits.digest!r}, LONG), [Job(ONE, 0, 0), Job(OTHER, 0, 0)], workers=2)
"""
    (tmp_path / "search.py").write_text(code)
    root = str(Path(__file__).parents[1])
    search = subprocess.Popen([sys.executable, tmp_path / "search.py"], env=os.environ | {"PYTHONPATH": root})
    wait_until(lambda: list(tmp_path.glob("checkpoints/*.pt")))
    children = children_of(search.pid)
    assert len(children) >= 2
    search.kill()
    search.wait()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))

    found = kept(tmp_path, digits.digest, LONG)
    collect(found, [Job(ONE, 0, 0), Job(OTHER, 0, 0)], workers=2)
    for arch in (ONE, OTHER):
        assert found.known()[arch.key, 0].score == trained_here(digits, arch)
    assert not list(tmp_path.glob("checkpoints/*"))
