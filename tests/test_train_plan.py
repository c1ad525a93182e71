"""Which trainings a command asks for, what they are compared with, and which folders they may take."""

from dataclasses import replace
from pathlib import Path

import pytest

from evit_nas.arch import ArchConfig
from evit_nas.data.preprocessing import Preprocessing
from evit_nas.errors import RunError, UsageError
from evit_nas.files import lock
from evit_nas.searching import record
from evit_nas.searching.front import Candidate
from evit_nas.trained import WEIGHTS
from evit_nas.training.folder import BEST, CHECKPOINT, METRICS, create, read_record
from evit_nas.training.plan import Chosen, How, baselines, begin, plan
from evit_nas.training.recipe import Recipe, load_recipe
from tests.fakes import latency_of
from tests.networks import tiny_arch
from tests.trainings import write_shades

QUICK = load_recipe("tiny", {})


def plans_of(*names, recipe=QUICK, seeds=(0,), out=None, **archs):
    chosen = [Chosen(name, archs.get(name, tiny_arch())) for name in names]
    return plan(chosen, How("digits", "tiny", recipe, seeds=seeds, out=out))


# --- names and folders ---


def test_every_network_is_trained_with_every_seed_in_a_folder_of_its_own():
    plans = plans_of("a", "b", seeds=(0, 1))
    assert [folder.name for folder, _ in plans] == [f"{name}-digits-tiny-s{seed}" for name in "ab" for seed in (0, 1)]


def test_a_network_named_twice_is_trained_once():
    assert len(plans_of("a", "a")) == 1


def test_two_networks_of_one_name_are_refused_before_one_takes_the_others_folder(tmp_path):
    chosen = [Chosen("a", tiny_arch()), Chosen("a", tiny_arch(heads=1))]
    with pytest.raises(UsageError, match=r"two different ones are called a.*Rename a file"):
        plan(chosen, How("digits", "tiny", QUICK, out=tmp_path))


@pytest.mark.parametrize("channels", [2, 4, 13])
def test_channels_that_no_image_has_are_refused_before_anything_starts(tmp_path, channels):
    arch = ArchConfig.model_validate(tiny_arch().model_dump() | {"in_channels": channels})
    with pytest.raises(UsageError, match=rf"a: in_channels must be 1 \(grey\) or 3 .*, got {channels}\."):
        plans_of("a", a=arch, out=tmp_path)
    with pytest.raises(UsageError, match=f"a network of {channels} channels has none"):
        Preprocessing(input_size=(channels, 64, 64), mean=(0.5,) * channels, std=(0.5,) * channels).transform()


# --- beginning ---


def test_older_records_name_a_folder_of_images_as_it_was_typed_and_go_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_shades(tmp_path / "shades")
    (folder, settings), *_ = plan([Chosen("a", tiny_arch())], How("shades", "tiny", QUICK, out=tmp_path))
    assert settings.data == str(tmp_path / "shades")
    create(folder, settings.model_copy(update={"data": "shades"}), "evit-nas train a")
    (folder / CHECKPOINT).write_bytes(b"something")
    begin([(folder, settings)], "evit-nas train a", resume=True)


def test_weights_and_teachers_are_found_from_other_folders(tmp_path, monkeypatch):
    """A training goes on from wherever its folder is named."""
    monkeypatch.chdir(tmp_path)
    Path("m0.pth").touch()
    Path("teacher").mkdir()
    write_shades(tmp_path / "shades")
    how = How("shades", "tiny", QUICK, out=tmp_path, init="m0.pth", teacher="teacher")
    (folder, settings), *_ = plan([Chosen("a", tiny_arch())], how)
    assert (settings.init, settings.teacher) == (str(tmp_path / "m0.pth"), str(tmp_path / "teacher"))
    for init, teacher in (("scratch", None), ("timm:efficientvit_m1", "timm:resnet18")):
        (_, plain), *_ = plan([Chosen("a", tiny_arch())], replace(how, init=init, teacher=teacher))
        assert (plain.init, plain.teacher) == (init, teacher)
    create(folder, settings.model_copy(update={"init": "m0.pth", "teacher": "teacher"}), "evit-nas train a")
    (folder / CHECKPOINT).write_bytes(b"something")
    begin([(folder, settings)], "evit-nas train a", resume=True)  # older records have them as they were typed


@pytest.fixture
def begun(tmp_path):
    """The folder of a training that wrote metrics, and ended before anything was saved."""
    plans = plans_of("a", out=tmp_path)
    begin(plans, "evit-nas train a", resume=False)
    folder = plans[0][0]
    (folder / METRICS).write_text('{"kind":"init","init":"scratch"}\n')
    return folder


@pytest.mark.parametrize("resume", [False, True])
def test_as_long_as_nothing_was_trained_other_settings_take_the_place(tmp_path, begun, resume):
    begin(plans_of("a", recipe=Recipe(batch_size=44), out=tmp_path), "second", resume)
    found = read_record(begun)
    assert (found.settings.recipe.batch_size, found.command) == (44, "second")


def test_the_same_settings_again_keep_the_record_as_it_was(tmp_path, begun):
    begin(plans_of("a", out=tmp_path), "second", resume=False)
    assert read_record(begun).command == "evit-nas train a"


@pytest.mark.parametrize("name", [CHECKPOINT, BEST])
def test_what_was_trained_is_resumed_or_left_alone(tmp_path, begun, name):
    (begun / name).touch()
    with pytest.raises(RunError, match="Add --resume"):
        begin(plans_of("a", out=tmp_path), "", resume=False)
    begin(plans_of("a", out=tmp_path), "", resume=True)
    with pytest.raises(UsageError, match="begun with another recipe"):
        begin(plans_of("a", recipe=Recipe(), out=tmp_path), "", resume=True)


def test_a_finished_training_needs_no_resume_and_takes_no_other_settings(tmp_path, begun):
    (begun / WEIGHTS).touch()
    begin(plans_of("a", out=tmp_path), "", resume=False)
    with pytest.raises(UsageError, match="begun with another recipe"):
        begin(plans_of("a", recipe=Recipe(), out=tmp_path), "", resume=False)


def test_where_one_training_is_refused_no_folder_is_made_for_the_others(tmp_path, begun):
    (begun / BEST).touch()
    with pytest.raises(RunError, match="Add --resume"):
        begin(plans_of("b", "a", out=tmp_path), "", resume=False)
    assert list(tmp_path.iterdir()) == [begun]


def test_settings_do_not_change_under_a_training_that_is_at_work(tmp_path, begun):
    with lock(begun), pytest.raises(RunError, match="is being written by"):
        begin(plans_of("a", recipe=Recipe(), out=tmp_path), "", resume=False)
    assert read_record(begun).settings.recipe == QUICK


# --- baselines ---


def candidate(name, ms, **changes):
    return Candidate(name, tiny_arch(**changes), 0.0, (latency_of(ms),), certified=True, trial=None)


@pytest.fixture
def run(new_run, monkeypatch):
    """A run with a quick and a slow member, and two of the paper's networks near one each."""
    members, references = (
        [candidate("quick", 1.0), candidate("slow", 4.0, heads=1)],
        [
            candidate("m0", 1.1, depth=2),
            candidate("m1", 3.9, depth=3),
        ],
    )
    monkeypatch.setattr(record, "load_front", lambda run: record.Front(members, references, 9, 9, "nobody"))
    return new_run().path


def test_each_member_is_compared_with_the_nearest_of_its_own(run):
    chosen = [Chosen("quick", tiny_arch(), run), Chosen("slow", tiny_arch(heads=1), run), Chosen("file", tiny_arch())]
    found = baselines(chosen, "nearest")
    assert {key: baseline.name for key, baseline in found.items()} == {f"{run}/quick": "m0", f"{run}/slow": "m1"}
    assert found[f"{run}/slow"].arch == tiny_arch(depth=3)


def test_a_baseline_has_the_input_of_what_is_compared_with_it(new_run):
    """As it had in the search, where it was measured beside."""
    run = new_run(space="efficientvit-tiny")
    chosen = [Chosen("member", run.settings.space.smallest(), run.path), Chosen("m2", ArchConfig.preset("m2"))]
    found = baselines(chosen, "m1")
    m1 = ArchConfig.preset("m1")
    assert found[f"{run.path}/member"].arch.model_copy(update={"num_classes": 10}) == run.settings.space.adapted(m1)
    assert found["m2"].arch == m1
