"""A supernet is trained as a network is, judged on images it has not seen, and every network of it can be used."""

import os
import random
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from evit_nas.accuracy.supernet import Inherited, SupernetScore
from evit_nas.api import Result
from evit_nas.arch import ArchConfig
from evit_nas.config import AccuracySettings, SearchSettings
from evit_nas.data.sources import open_source
from evit_nas.errors import Interrupted, MeasurementError, RunError, UsageError
from evit_nas.lookup import find_arch
from evit_nas.network import supernet as supernets
from evit_nas.network.cost import cost
from evit_nas.network.model import build
from evit_nas.network.saved import open_saved
from evit_nas.network.supernet import Members, Supernet, batches_of, recalibrate, split
from evit_nas.network.transfer import start_from
from evit_nas.network.weights import read_weights
from evit_nas.runs import Run
from evit_nas.searching import evaluate, shared_weights, study
from evit_nas.searching.attributes import TrialAttributes
from evit_nas.searching.judges import check_sources
from evit_nas.searching.record import evaluated
from evit_nas.searching.storage import open_study
from evit_nas.searching.study import Search
from evit_nas.space import SearchSpace
from evit_nas.stats import kendall_tau
from evit_nas.trained import SUPERNET_RECORD, WEIGHTS, Trained, parted
from evit_nas.training import supernet_session
from evit_nas.training.carry import carry_on
from evit_nas.training.folder import CHECKPOINT, create
from evit_nas.training.hardware import Hardware
from evit_nas.training.inherit import inherit
from evit_nas.training.plan import begin
from evit_nas.training.recipe import load_recipe
from evit_nas.training.settings import SupernetSettings
from evit_nas.training.supernet import BETWEEN, Band, SupernetRun
from evit_nas.training.supernet_session import SupernetAsked, plan_supernet
from evit_nas.words import settings_from, with_supernet
from evit_nas.yamlio import to_yaml
from tests.searches import Silent
from tests.test_elastic import space_of
from tests.test_judges import judge
from tests.test_train import LIVELY, Stopped, Watch, lines
from tests.test_train import settings as network_settings
from tests.trainings import SHADES, write_shades

MACS = (1_000_000, 3_000_000)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_shades(tmp_path_factory.mktemp("images"))


def space() -> SearchSpace:
    return space_of(width={"from": 32, "to": 64, "step": 32}).model_copy(update={"num_classes": 3})


def settings(images, **changes) -> SupernetSettings:
    recipe = load_recipe("paper", LIVELY | {"epochs": 2} | changes.pop("recipe", {}))
    largest, smallest = Band(space(), MACS).ends(seed=0)
    fields = {"name": "small", "arch": largest, "smallest": smallest, "space": space(), "macs": MACS, "held_out": 12}
    return SupernetSettings(data=str(images), recipe_name="quick", recipe=recipe, **fields | changes)


def begun(folder: Path, images, **changes) -> Path:
    create(folder, settings(images, **changes), "evit-nas supernet train")
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory, images):
    """An uninterrupted training, and what it came to."""
    folder = begun(tmp_path_factory.mktemp("supernet") / "a", images)
    return folder, carry_on(SupernetRun, folder, Watch())


# --- which networks ---


def test_networks_of_a_band_have_its_macs():
    rng, band = random.Random(0), Band(space(), MACS)
    assert all(MACS[0] <= cost(band.member(rng)).macs <= MACS[1] for _ in range(50))


def test_the_ends_of_a_band_are_its_largest_and_smallest():
    band, rng = Band(space(), MACS), random.Random(5)
    largest, smallest = (cost(arch) for arch in band.ends(seed=0))
    drawn = [cost(band.member(rng)) for _ in range(50)]
    assert all(
        smallest.macs * smallest.params <= own.macs * own.params <= largest.macs * largest.params for own in drawn
    )


@pytest.mark.parametrize("macs", [(1_000_000, 4_000_000), (3_000_000, 1_000_000), (0, 1_000_000)])
def test_a_band_that_is_too_wide_is_refused_with_one_that_is_not(macs):
    with pytest.raises(UsageError, match=r"at most 3 times the least MACs.*--macs \S+M\.\.\S+M"):
        Band(space(), macs)


def test_a_band_without_networks_is_refused():
    with pytest.raises(UsageError, match=r"none has 1\.00G to 2\.00G MACs"):
        Band(space(), (10**9, 2 * 10**9)).member(random.Random(0))


# --- training ---


def test_a_step_trains_the_largest_the_smallest_and_some_between_on_the_same_images(tmp_path, images, monkeypatch):
    seen: list[tuple[str, torch.Tensor]] = []
    from evit_nas.network.elastic import Elastic

    forward = Elastic.forward

    def noted(self, arch, x):
        seen.append((arch.key, x))
        return forward(self, arch, x)

    monkeypatch.setattr(Elastic, "forward", noted)
    wish = settings(images, recipe={"epochs": 1, "warmup_epochs": 0})
    carry_on(SupernetRun, begun(tmp_path / "a", images, recipe={"epochs": 1, "warmup_epochs": 0}), Watch())
    first = seen[: 2 + BETWEEN]
    assert [key for key, _ in first[:2]] == [wish.arch.key, wish.smallest.key]
    assert all(x is first[0][1] for _, x in first)
    steps = [tuple(key for key, _ in seen[at + 2 : at + 2 + BETWEEN]) for at in range(0, len(seen), 2 + BETWEEN)]
    assert len(set(steps)) > 1  # others in every step


def test_it_learns_and_says_what_its_ends_reach(finished):
    folder, supernet = finished
    rows = [row for row in lines(folder) if row["kind"] == "val"]
    assert len(rows) == 2
    assert all(row["top1"] == pytest.approx((row["largest_top1"] + row["smallest_top1"]) / 2) for row in rows)
    assert all(row["images"] == 12 for row in rows)
    assert Supernet.load(folder) == supernet
    assert supernet.classes == SHADES


def assert_same_weights(folder: Path, other: Path) -> None:
    one, two = (read_weights(path / WEIGHTS) for path in (folder, other))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("after", [1, 4])
def test_an_interrupted_training_comes_to_the_same_weights(tmp_path, images, finished, after, monkeypatch):
    monkeypatch.setattr("evit_nas.training.loop.CHECKPOINT_EVERY_S", 0.0)
    folder = begun(tmp_path / "b", images)
    with pytest.raises(Interrupted):
        carry_on(SupernetRun, folder, Stopped(after))
    assert (folder / CHECKPOINT).exists() == (after > 1)
    carry_on(SupernetRun, folder, Watch())
    assert_same_weights(folder, finished[0])


KILLED = """
import os, signal, sys
from pathlib import Path
from evit_nas.training import carry, loop
from evit_nas.training.supernet import SupernetRun
from tests.test_train import Watch
class Killed(Watch):
    def trained(self, status):
        super().trained(status)
        if len(self.statuses) == 6:
            os.kill(os.getpid(), signal.SIGKILL)
loop.CHECKPOINT_EVERY_S = 0.0
carry.carry_on(SupernetRun, Path(sys.argv[1]), Killed())
"""


@pytest.mark.slow
def test_a_killed_training_comes_to_the_same_weights(tmp_path, images, finished):
    folder = begun(tmp_path / "b", images)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, folder], env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    )
    assert killed.returncode == -signal.SIGKILL
    assert not (folder / SUPERNET_RECORD).exists()
    carry_on(SupernetRun, folder, Watch())
    assert_same_weights(folder, finished[0])


@pytest.mark.slow
def test_two_processes_train_as_one_does_in_two_parts(tmp_path, images):
    recipe = {"average": 0.0, "epochs": 2, "learning_rate": 1e-2}  # larger ones make much of the last digits
    carry_on(SupernetRun, begun(tmp_path / "alone", images, recipe=recipe | {"accumulate": 2}), Watch())
    folder = begun(tmp_path / "two", images, recipe=recipe)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "-m"]
    subprocess.run(
        [*launcher, "evit_nas", "supernet", "train", str(folder), "--resume", "--workers", "0"],
        check=True,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
    )
    alone, shared = (
        [row["loss"] for row in lines(tmp_path / name) if row["kind"] == "train"] for name in ("alone", "two")
    )
    assert shared == pytest.approx(alone, rel=1e-5)


def test_what_is_held_out_is_in_no_batch(images):
    source = open_source(str(images), seed=0)
    rest, held = split(source, 12, seed=0)
    names = [{part.name(index) for index in range(len(part))} for part in (rest, held)]
    assert len(names[1]) == 12
    assert not names[0] & names[1]
    assert names[0] | names[1] == {source.train.name(index) for index in range(len(source.train))}


# --- networks with inherited weights ---


def test_statistics_are_the_mean_of_those_of_the_batches_and_of_nothing_before():
    model = build(space().smallest(), seed=0)
    x = torch.randn(60, 3, 64, 64)
    with torch.no_grad():
        model(torch.randn(8, 3, 64, 64) + 5)  # which is to be forgotten
    recalibrate(model, [x[:20], x[20:40], x[40:]])
    norm = model.stem[0].bn
    with torch.no_grad():
        parts = [model.stem[0].conv(part) for part in (x[:20], x[20:40], x[40:])]
    means = torch.stack([part.mean((0, 2, 3)) for part in parts]).mean(0)
    assert torch.allclose(norm.running_mean, means, atol=1e-5)
    assert not model.training
    assert norm.momentum == 0.1


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, [1]), (100, [100]), (101, [101]), (102, [100, 2]), (250, [100, 100, 50])]
)
def test_no_batch_is_a_single_image_unless_there_is_no_other(count, sizes):
    assert [len(part) for part in batches_of(torch.zeros(count, 1))] == sizes


def test_a_network_is_named_by_supernet_and_architecture(finished, tmp_path):
    folder, supernet = finished
    arch = space().smallest()
    file = tmp_path / "net.yaml"
    file.write_text(arch.to_yaml())
    text = f"{folder}#{file}"
    assert parted(text) == (folder, str(file))
    assert parted("some#thing") is None
    assert find_arch(text) == supernet.fitted(arch)
    saved = open_saved(text)
    assert (saved.name, saved.classes) == ("net", SHADES)
    expected = Members(folder).take(arch)
    assert all(
        torch.equal(a, b)
        for a, b in zip(saved.model.state_dict().values(), expected.state_dict().values(), strict=True)
    )


def test_a_training_starts_from_the_very_network_in_the_supernet(finished):
    folder, supernet = finished
    model = build(supernet.fitted(space().smallest()), seed=9)
    transfer = start_from(model, folder, classes=SHADES)
    assert "100.0%" in transfer.summary()
    taken = Members(folder).take(space().smallest()).state_dict()
    learned = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    assert all(torch.equal(tensor, taken[name]) for name, tensor in learned.items())


def test_a_network_outside_the_space_is_refused_with_what_is_outside(finished):
    with pytest.raises(UsageError, match=r"not in the space: .*width"):
        Supernet.load(finished[0]).fitted(ArchConfig.preset("m5"))


def test_a_folder_without_a_finished_supernet_says_the_way_out(tmp_path):
    with pytest.raises(UsageError, match=r"evit-nas supernet train .* --resume"):
        Supernet.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": {"from": 32, "to": 96, "step": 32}}, r"stage1\.width = 96"),
        ({"mixer": ["softmax", "linear"]}, r"stage1\.mixer = linear"),
    ],
)
def test_a_space_with_more_in_it_is_refused(finished, changes, message):
    with pytest.raises(UsageError, match=message):
        Supernet.load(finished[0]).check_covers(space_of(**{"width": {"from": 32, "to": 64, "step": 32}} | changes))


def test_a_part_of_the_space_is_covered_whatever_its_size_and_classes(finished):
    part = space_of(width=32, depth=1).model_copy(update={"image_size": 96, "num_classes": 1000})
    supernet = Supernet.load(finished[0])
    supernet.check_covers(part)
    member = supernet.fitted(part.smallest())
    assert (member.image_size, member.num_classes) == (supernet.largest.image_size, 3)


def test_images_of_other_channels_are_refused(finished):
    with pytest.raises(UsageError, match="3 channels, the space 1"):
        Supernet.load(finished[0]).check_covers(space().model_copy(update={"in_channels": 1}))


# --- what they are worth ---


def test_a_score_is_the_mean_over_held_out_images_with_the_error_of_its_difference(finished):
    folder, supernet = finished
    score, arch = SupernetScore(folder), supernet.smallest
    found = score.of(arch)
    members = Members(folder)
    x, labels = members.held_out
    losses = {}
    for name, own in {"own": arch, "largest": supernet.largest}.items():
        with torch.no_grad():
            logits = members.take(own)(x).double()
        losses[name] = -logits.log_softmax(1)[torch.arange(len(x)), labels]
        if name == "own":
            assert found.accuracy == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
    apart = (losses["own"] - losses["largest"]).numpy()
    assert found.cross_entropy == pytest.approx(float(losses["own"].mean()), rel=1e-6)
    assert found.error == pytest.approx(np.std(apart, ddof=1) / np.sqrt(len(apart)), rel=1e-5)
    assert score.of(supernet.largest).error == 0
    assert isinstance(found, Inherited)


def test_the_same_network_has_the_same_score_again(finished):
    folder, supernet = finished
    assert SupernetScore(folder).of(supernet.smallest) == SupernetScore(folder).of(supernet.smallest)


def test_a_network_without_weights_cannot_be_judged(finished):
    with pytest.raises(MeasurementError, match="no weights"):
        SupernetScore(finished[0]).of(ArchConfig.preset("m5"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"classes": ("a", "b", "c")}, "other classes now"), ({"images": 73}, "training images now, and had 73")],
)
def test_data_that_have_changed_are_refused(finished, monkeypatch, changes, words):
    """With other images, others would be held out: it has learned from some of them."""
    folder, supernet = finished
    assert supernet.images > supernet.held_out
    other = supernet.model_copy(update=changes)
    monkeypatch.setattr(supernets.Supernet, "load", classmethod(lambda cls, path: other))
    with pytest.raises(UsageError, match=words):
        SupernetScore(folder).of(supernet.smallest)


# --- in a search ---


@pytest.fixture
def new_run(tmp_path, finished):
    def create(**changes):
        target = {"conditions": {"device": "fake"}, "budget_ms": 1.0}
        accuracy = {"method": "supernet", "supernet": str(finished[0])}
        fields = {"space_name": "x", "space": space(), "targets": [target], "pool": 6, "accuracy": accuracy}
        return Run.create(tmp_path / "run", SearchSettings.model_validate(fields | changes), {}, "")

    return create


def test_a_search_takes_its_scores_from_the_supernet(new_run, finished):
    judged = judge(new_run())
    found = SupernetScore(finished[0]).of(space().smallest())
    estimate = judged.estimate(space().smallest())
    assert estimate.value == -found.cross_entropy
    assert estimate.high - estimate.low == pytest.approx(2 * 1.2816 * found.error)
    assert "cross-entropy" in judged.origin
    assert "1.00M to 3.00M MACs" in judged.origin


class TestPredictions:
    """By a stand-in for what networks come to with inherited weights, which counts how often it is asked."""

    @pytest.fixture
    def asked(self, monkeypatch):
        asked: list[str] = []

        def inherited(folder, arch):
            asked.append(arch.key)
            return {"cross_entropy": self.entropy(arch), "error": 0.02, "accuracy": 0.5}

        monkeypatch.setattr("evit_nas.accuracy.supernet.inherited", inherited)
        monkeypatch.setattr(shared_weights, "JUDGED", 40)
        monkeypatch.setattr(study, "_workers", lambda settings: 0)  # the stand-in is known in this process alone
        return asked

    @staticmethod
    def entropy(arch):
        return 40 * cost(arch).macs ** -0.2 - 0.05 * arch.stages[0].depth

    def test_rank_networks_that_have_not_been_judged(self, new_run, asked):
        judged = judge(new_run())
        assert not asked
        assert judged.predicts
        assert len(asked) == len(set(asked)) == 40
        archs = [space().sample(random.Random(seed)) for seed in range(100, 160)]
        truth = [-self.entropy(arch) for arch in archs]
        assert kendall_tau(judged.values(archs), np.array(truth)) > 0.9
        assert np.abs(judged.values(archs) - truth).max() < 0.2
        assert len(asked) == 40

    def test_cost_no_second_judging(self, new_run, asked):
        run = new_run()
        first = judge(run)
        assert first.predicts
        again = judge(run)
        assert again.predicts
        assert len(asked) == 40
        assert first.values([space().smallest()]) == again.values([space().smallest()])

    def test_are_not_lost_where_a_search_ends_before_its_first_trial(self, new_run, asked):
        run = new_run()
        assert not evaluated(run)
        assert judge(run).predicts
        assert evaluated(run)

    def test_are_refused_where_they_tell_nothing(self, new_run, asked, monkeypatch):
        rng = random.Random(0)
        monkeypatch.setattr(self.__class__, "entropy", staticmethod(lambda arch: rng.uniform(1, 2)))
        watch = Silent()
        assert not judge(new_run(), watch).predicts
        assert "too little to look at thousands" in watch.notes[-1]

    def test_leave_out_what_cannot_be_judged(self, new_run, asked, monkeypatch):
        known, failing, errors = self.entropy, [], [MeasurementError, RuntimeError, MemoryError]

        def entropy(arch):
            if errors:
                failing.append(arch.key)
                raise errors.pop()("not finite")
            return known(arch)

        monkeypatch.setattr(self.__class__, "entropy", staticmethod(entropy))
        watch = Silent()
        assert judge(new_run(), watch).predicts
        assert [line for line in watch.notes if "left" in line] == [f"left out: {key}: not finite" for key in failing]
        assert "from 37 judged networks" in watch.notes[-1]

    def test_learn_from_the_band_and_from_all_of_the_space(self, finished):
        supernet = Supernet.load(finished[0])
        archs = shared_weights.to_judge(supernet.space, supernet, seed=0)
        least, most = supernet.macs
        within = [least <= cost(supernet.space.adapted(arch)).macs <= most for arch in archs]
        assert len({arch.key for arch in archs}) == len(archs)
        assert all(within[shared_weights.JUDGED // 2 :])
        assert not all(within)

    def test_let_a_search_screen(self, new_run, asked, fakes):
        run = new_run(trials=48, targets=[{"conditions": {"device": "fake"}, "budget_ms": 2.5}])
        front = Search(run, Silent()).run()
        with open_study(run) as study:
            origins = [TrialAttributes(trial).origin for trial in study.trials]
            screened = [trial for trial in study.trials if TrialAttributes(trial).origin == "screening"]
        assert origins.count("screening") > 10
        for trial in screened:  # predictions choose; what stands on record was judged
            assert TrialAttributes(trial).estimate.value == -self.entropy(TrialAttributes(trial).arch)
        assert all(member.score == -self.entropy(member.arch) for member in front.members)

    def test_are_not_made_for_a_sampler_that_was_named(self, new_run, asked, fakes):
        run = new_run(trials=8, sampler="random", targets=[{"conditions": {"device": "fake"}, "budget_ms": 2.5}])
        Search(run, Silent()).run()
        assert len(set(asked)) < 20


def test_other_weights_are_another_judge(new_run, finished, tmp_path):
    run = new_run()
    first = judge(run).origin
    other = tmp_path / "other"
    shutil.copytree(finished[0], other)
    (other / WEIGHTS).write_bytes((other / WEIGHTS).read_bytes() + b" ")
    run.settings = run.settings.model_copy(
        update={"accuracy": run.settings.accuracy.model_copy(update={"supernet": str(other)})}
    )
    with pytest.raises(RunError, match="would not compare"):
        judge(run)
    assert first


def test_a_space_beyond_the_supernet_is_refused_before_anything_is_measured(new_run, tmp_path):
    run = new_run(space=space_of())
    with pytest.raises(UsageError, match=r"no weights for stage1\.width = 96"):
        check_sources(run.settings, tmp_path / "labels", print)


def test_the_method_needs_a_supernet():
    with pytest.raises(ValueError, match="--supernet FOLDER"):
        AccuracySettings(method="supernet")


def test_a_search_that_names_data_trains_the_supernet_first(monkeypatch, tmp_path, finished):
    asked = []

    def trained(wish, watch, hardware, command):
        asked.append(wish)
        return finished[0]

    monkeypatch.setattr("evit_nas.training.supernet_session.supernet_for", trained)
    words = with_supernet({"accuracy": "supernet", "data": "digits", "budget": "5ms", "space": "tiny"}, Watch(), "")
    assert settings_from(**words).accuracy.supernet == str(finished[0])
    [wish] = asked
    assert (wish.space, wish.data, wish.budget_ms) == ("efficientvit-tiny", "digits", 5.0)
    assert wish.folder == Path("runs/supernet/efficientvit-tiny-digits-cpu-5ms-s0")


@pytest.mark.parametrize("words", [{"data": "digits"}, {"accuracy": "supernet", "supernet": "x", "data": "digits"}, {}])
def test_no_other_search_does(words):
    assert with_supernet(words, Watch(), "") == words


# --- on the command line ---


def test_the_command_trains_goes_on_and_says_what_comes_next(call, images):
    Path("space.yaml").write_text(to_yaml(space()))
    command = ("supernet", "train", "space.yaml", "--data", str(images), "--macs", "1M..3M", "--out", "net")
    options = ("--epochs", "1", "--batch-size", "16", "--workers", "0")
    first = call(*command, *options)
    assert first.code == 0, first.err
    assert "held-out images: the largest" in first.err
    assert "next:    evit-nas search --accuracy supernet --supernet net --space space.yaml --budget 5ms" in first.err
    assert call("supernet", "train", "net", "--resume").code == 0
    refused = call(*command, *options[:-2], "--seed", "1")
    assert (refused.code, "begun with another" in refused.err) == (2, True)


def test_a_search_from_the_command_line_ends_with_the_training_that_goes_on(call, finished, monkeypatch):
    monkeypatch.setattr(evaluate, "worker_pool", lambda count, avoid: ThreadPoolExecutor(count))
    monkeypatch.setattr(evaluate, "end", lambda pool: pool.shutdown(cancel_futures=True))
    Path("space.yaml").write_text(to_yaml(space()))
    options = ("--device", "fake", "--budget", "2ms", "--trials", "6", "--pool", "4", "--workers", "0", "--out", "run")
    found = call("search", "--space", "space.yaml", "--supernet", str(finished[0]), *options)
    assert found.code == 0, found.err
    assert "without m0 beside the front: the supernet has no weights for it" in found.err
    assert f"--data PATH --init {finished[0]}" in found.err
    assert call("report", "run").code == 0
    assert Result("run").state == "done"  # though the paper's networks are not beside it
    refused = call("train", "run", "--data", "digits", "--front", "--baseline", "nearest")
    assert (refused.code, "name m0..m5 as the baseline instead" in refused.err) == (2, True)


def test_a_search_goes_on_with_the_supernet_of_its_own_images_space_and_budget_only(tmp_path, monkeypatch):
    """Whatever they are called: a folder of images is often called train, a space mine.yaml."""
    trained = []

    def begin_only(folder, settings, *rest, **how):
        trained.append(folder)
        begin([(folder, settings)], "evit-nas search", resume=True)

    monkeypatch.setattr(supernet_session, "train_supernet", begin_only)
    monkeypatch.setattr(supernet_session, "pace_of", lambda *rest: SimpleNamespace(steps=1, epoch_s=1.0))
    monkeypatch.chdir(tmp_path)
    Path("space.yaml").write_text(to_yaml(space()))
    one = SupernetAsked("space.yaml", data=str(write_shades(tmp_path / "a" / "shades")), macs=MACS)
    asked = [
        one,
        replace(one, data=str(write_shades(tmp_path / "b" / "shades"))),
        one,
        replace(one, data="a/shades"),  # the first by another name
        replace(one, space=str(tmp_path / "other" / "space.yaml")),
    ]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "space.yaml").write_text(
        to_yaml(space_of(width={"from": 32, "to": 48, "step": 16}).model_copy(update={"num_classes": 3}))
    )
    for each in asked:
        supernet_session.supernet_for(each, Watch(), Hardware(workers=0), "evit-nas search")
    assert [folder.name for folder in trained] == [f"space-shades-s0{end}" for end in ("", "-2", "", "", "-3")]


def test_a_command_that_is_typed_again_trains_the_networks_that_it_began_with(tmp_path, images, monkeypatch):
    """Whatever is measured this time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(supernet_session, "pace_of", lambda *rest: SimpleNamespace(steps=1, epoch_s=1.0))
    Path("space.yaml").write_text(to_yaml(space()))
    asked, plans = SupernetAsked("space.yaml", data=str(images), budget_ms=2.0), []
    for most in (MACS[1], MACS[1] - 100_000):
        monkeypatch.setattr(supernet_session, "_macs_within", lambda *_, most=most: [most])
        plans.append(plan_supernet(asked, Hardware(workers=0), lambda _: None))
        begin(plans[-1:], "evit-nas supernet train", resume=True)
    assert plans[0] == plans[1]


def test_a_training_that_goes_on_is_not_changed_by_options(call, finished):
    refused = call("supernet", "train", str(finished[0]), "--resume", "--epochs", "400", "--macs", "1M..3M")
    assert refused.code == 2
    assert "--macs, --epochs cannot change" in refused.err


def test_a_folder_with_the_training_of_one_network_is_refused(tmp_path, images):
    create(tmp_path / "one", network_settings(images), "evit-nas train")
    (tmp_path / "one" / CHECKPOINT).write_bytes(b"something")
    with pytest.raises(UsageError, match=r"was begun with another .*space"):
        begin([(tmp_path / "one", settings(images))], "evit-nas supernet train", resume=True)


def test_a_dry_run_trains_no_supernet(call, images, monkeypatch):
    monkeypatch.setattr("evit_nas.words.with_supernet", lambda *rest: pytest.fail("it was trained"))
    Path("space.yaml").write_text(to_yaml(space()))
    options = ("--space", "space.yaml", "--accuracy", "supernet", "--data", str(images), "--device", "fake")
    said = call("search", *options, "--budget", "2ms", "--trials", "6", "--workers", "0", "--dry-run")
    assert said.code == 0, said.err
    assert "a supernet is trained for it first" in said.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--macs", "1M..3M", "--budget", "5ms"), "--macs and --budget both say"),
        (("--macs", "5M"), "takes a range, got '5M'; try 100M..300M"),
        (("--macs", "1M..9M"), "at most 3 times the least MACs"),
        ((), "at most 3 times the least MACs"),
    ],
)
def test_wrong_use_is_refused_with_the_way_out(options, message, call, images):
    Path("space.yaml").write_text(to_yaml(space()))
    refused = call("supernet", "train", "space.yaml", "--data", str(images), *options)
    assert refused.code == 2
    assert message in refused.err
    assert not Path("runs").exists()


def test_the_training_of_one_network_is_not_taken_for_a_supernet(tmp_path, images):
    create(tmp_path / "a", network_settings(images), "evit-nas train")
    with pytest.raises(UsageError, match="training of one network: evit-nas train"):
        plan_supernet(SupernetAsked(str(tmp_path / "a")), Hardware(), print)


def test_a_supernet_is_not_taken_for_the_training_of_one_network(call, tmp_path, images):
    begun(tmp_path / "a", images)
    refused = call("train", "a")
    assert refused.code == 2
    assert "evit-nas supernet train a --resume" in refused.err


def test_a_network_as_it_is_becomes_a_folder_that_ships(finished):
    folder, supernet = finished
    notes: list[str] = []
    name = folder / "least.yaml"
    name.write_text(supernet.smallest.to_yaml())
    out = inherit(f"{folder}#{name}", "evit-nas ship", notes.append)
    trained = Trained.load(out)
    assert (trained.name, trained.arch, trained.validation_images) == ("least", supernet.smallest, 18)
    assert "shared" in trained.init
    again = open_saved(str(out)).model.state_dict()
    expected = Members(folder).take(supernet.smallest).state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in again.items())
    assert inherit(f"{folder}#{name}", "evit-nas ship", notes.append) == out
