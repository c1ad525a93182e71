"""Labels that other machines train: checkpoints where all of them reach, and an executor in the place of processes."""

from __future__ import annotations

from concurrent.futures import Executor, Future

import pytest

from evit_nas.data.cache import load_dataset
from evit_nas.errors import LostLink, MeasurementError
from evit_nas.searching.labelling import labels
from evit_nas.searching.labelling.labels import Job, Labels
from tests.test_labels import ONE, OTHER, RECIPE, label_of

pytest.importorskip("pyarrow")


class Elsewhere(Executor):
    """A cluster that answers at once."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure, self.most = failure, 0

    def submit(self, function, /, *args, **kwargs):
        future: Future = Future()
        if self.failure:
            future.set_exception(self.failure)
        else:
            future.set_result(function(*args, **kwargs))
        return future


def collected(found: Labels, jobs: list[Job], cluster: Executor) -> list[str]:
    notes: list[str] = []
    found.collect(jobs, 2, lambda job, label: None, notes.append, cluster)
    return notes


def test_a_training_goes_on_from_a_bucket_to_the_same_score_and_leaves_nothing_there(tmp_path):
    digest = load_dataset("digits", RECIPE.image_size).digest
    bucket = tmp_path / "bucket"
    here = Labels(tmp_path / "here", "digits", digest, RECIPE)
    there = Labels(tmp_path / "there", "digits", digest, RECIPE, f"file://{bucket}/run")
    collected(here, [Job(ONE, 0, 1)], Elsewhere())
    collected(there, [Job(ONE, 0, 0)], Elsewhere())
    assert [path.suffix for path in bucket.rglob("*.*")] == [".pt"]
    collected(there, [Job(ONE, 0, 1)], Elsewhere())
    assert there.known()[ONE.key, 0].score == here.known()[ONE.key, 0].score
    assert not list(bucket.rglob("*.*"))
    assert not (tmp_path / "there" / "checkpoints").exists()


def test_checkpoints_of_a_shared_folder_lie_there_and_not_in_the_run(tmp_path, monkeypatch):
    asked = []

    def train(data, digest, recipe, job, checkpoint):
        asked.append(checkpoint)
        return label_of(job)

    monkeypatch.setattr(labels, "_train", train)
    collected(
        Labels(tmp_path / "run", "digits", "abc", RECIPE, str(tmp_path / "shared")), [Job(ONE, 0, 1)], Elsewhere()
    )
    assert [path.parent for path in asked] == [tmp_path / "shared"]


def test_a_cluster_that_is_gone_ends_the_collection_where_a_network_that_fails_is_left_out(tmp_path):
    found = Labels(tmp_path, "digits", "abc", RECIPE)
    assert collected(found, [Job(ONE, 0, 1)], Elsewhere(MeasurementError("died", "crashed"))) == [
        f"left out: {ONE.key}: died"
    ]
    with pytest.raises(LostLink, match="gone"):
        collected(found, [Job(OTHER, 0, 1)], Elsewhere(LostLink("gone")))
