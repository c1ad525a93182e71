"""The command line: exit codes, one clear message for what is wrong, data on standard output only."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

from evit_nas import console, measuring, views
from evit_nas.accuracy import zero_cost
from evit_nas.arch import PRESETS, ArchConfig
from evit_nas.errors import Interrupted, LostLink, MeasurementError
from evit_nas.latency import DEVICES
from evit_nas.lookup import find_arch
from evit_nas.space import SearchSpace, shipped_spaces
from tests.fakes import FakeDevice, fake_proxies
from tests.networks import tiny_arch

VERBS = (
    *("search", "resume", "front", "describe", "measure", "score", "space", "export", "schema", "doctor"),
    *("train", "ship", "verify", "eval", "report", "runs", "replay", "config"),
    *("profile", "devices", "worker", "device check", "latency fit", "latency show", "latency check"),
)


@pytest.fixture
def run(call):
    return call


SEARCH = (
    "search",
    "--device",
    "fake",
    "--budget",
    "1.2ms",
    "--space",
    "efficientvit-tiny",
    "--trials",
    "14",
    "--pool",
    "5",
    "--workers",
    "0",
)


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """Where a copy is kept of what that search leaves."""
    return tmp_path_factory.mktemp("once") / "r"


@pytest.fixture
def searched(run, once, tmp_path):
    """What it leaves in the folder "r", for tests that look at that."""
    if not once.exists():
        assert run(*SEARCH, "--out", "r").code == 0
        shutil.move("r", once)
    return shutil.copytree(once, tmp_path / "r")


def heavy_after(*words, heavy=("torch", "optuna", "onnxruntime", "onnx", "ray")):
    """What a command shows, and at the end which heavy packages it has imported."""
    code = (
        f"import sys; sys.argv = {['evit-nas', *words]}\n"
        "from evit_nas.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_help_lists_every_verb_and_imports_neither_torch_nor_numpy():
    shown = heavy_after("--help", heavy=("torch", "numpy", "pandas", "optuna", "onnxruntime", "onnx", "ray"))
    assert all(verb.split()[0] in shown for verb in VERBS)
    assert shown.splitlines()[-1] == "[]"


def test_an_architecture_is_described_without_torch():
    assert heavy_after("describe", "m0").splitlines()[-1] == "[]"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_its_options(run, verb):
    result = run(*verb.split(), "--help")
    assert result.code == 0
    assert "Usage: evit-nas " + verb in result.out


def test_version(run):
    assert run("--version").out.startswith("evit-nas ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serch"], ["search"]),
        (["describe", "m9"], ["'m9'", "m0, m1"]),
        (["describe", "missing.yaml"], ["missing.yaml", "no such file"]),
        (["search", "--budget", "5"], ["--budget", "'5'", "5ms"]),
        (["search", "--budget", "5ms", "--device", "gpu9"], ["'gpu9'", "Known: cpu"]),
        (["search", "--budget", "5ms", "--space", "nowhere"], ["'nowhere'", "efficientvit-224"]),
        (["search", "--budget", "5ms", "--trials", "0"], ["trials"]),
        (["search"], ["--budget"]),
        (["front", "nowhere"], ["not a run folder"]),
        (["resume", "nowhere"], ["not a run folder"]),
        (["space", "nowhere"], ["'nowhere'"]),
        (["space", "nowhere.yaml", "--dump"], ["nowhere.yaml", "no such file"]),
        (["export", "m0", "--to", "tflite"], ["tflite", "onnx"]),
        (["export", "m0", "--to", "yaml", "--out", "/dev/null/m0.yaml"], ["/dev/null/m0.yaml", "--out"]),
        (["export", "m0", "--to", "onnx", "--out", "/dev/null/m0.onnx"], ["/dev/null/m0.onnx", "--out"]),
        (["export", "m0", "--to", "onnx", "--weights", "none.pth"], ["none.pth", "no such file"]),
        (["schema", "run"], ["'run'"]),
        (["measure", "none.onnx", "--device", "nothing"], ["'nothing'"]),
        (["measure", "none.onnx"], ["none.onnx", "no file"]),
        (["measure"], ["at least one network"]),
        (["measure", "m0", "--image-size", "100"], ["--image-size", "multiple of 16", "100"]),
        (["measure", "m0", "--session", "spin"], ["name=value", "'spin'"]),
        (["measure", "m0", "--precision", "fp64"], ["fp32", "fp64"]),
        (["measure", "m0", "--device", "cpu:4", "--threads", "2"], ["disagree"]),
        (["search", "--budget", "5ms", "--device", "fake", "--device", "fake:2"], ["fake=5ms,fake:2=5ms"]),
        (["search", "--budget", "fake=5ms,pi=9ms", "--device", "fake"], ["'pi'"]),
        (["search", "--budget", "fake=5ms", "--device", "fake", "--device", "fake:2"], ["'fake:2'"]),
        (["search", "--budget", "a=5ms,a=6ms", "--device", "fake:a"], ["'a'"]),
        (["search", "--budget", "5ms", "--device", "fake", "--max-params", "many"], ["--max-params", "'many'"]),
        (["search", "--budget", "5ms", "--device", "fake", "--max-memory", "0MB"], ["--max-memory", "'0MB'"]),
        (["search", "--budget", "fake=5ms,fake=6ms", "--device", "fake"], ["two limits"]),
        (["profile", "m0", "--device", "torch"], ["'torch'", "--device cpu"]),
        (["worker", "--device", "remote:pi"], ["own machine"]),
        (["worker", "--bind", "0.0.0.0"], ["token"]),
    ],
)
def test_wrong_use_is_one_message_and_exit_2(run, arguments, words):
    result = run(*arguments)
    assert result.code == 2
    assert all(word in result.err for word in words), result.err
    assert "Traceback" not in result.err
    assert result.out == ""


def test_what_another_name_for_a_device_means_is_said(run):
    result = run("config", "--device", "gpu:1", "--budget", "5ms", "--space", "tiny")
    assert (result.code, result.err) == (0, "--device gpu:1 is cuda:1\n")
    assert "efficientvit-tiny: 64 px" in run("space", "tiny").out


def test_a_wrong_yaml_names_file_and_field(run, tmp_path):
    (tmp_path / "net.yaml").write_text(tiny_arch().to_yaml().replace("depth: 1", "depth: none", 1))
    result = run("describe", "net.yaml")
    assert result.code == 2
    assert "net.yaml: stages[0].depth" in result.err


def test_debug_shows_the_traceback_wherever_it_stands(run, monkeypatch):
    with pytest.raises(Exception, match="m9"):
        run("describe", "m9", "--debug")


@pytest.mark.parametrize("preset", PRESETS)
def test_describe_shows_stages_and_adds_up(run, preset):
    parts = json.loads(run("describe", preset, "--format", "json").out)
    total = parts.pop()
    assert total["part"] == "total"
    assert sum(p["params"] for p in parts) == total["params"]
    assert sum(p["macs"] for p in parts) == total["macs"]
    assert ArchConfig.preset(preset).key in run("describe", preset).out


@pytest.mark.parametrize("format_", ["json", "yaml", "csv"])
def test_data_is_machine_readable_on_standard_output(run, format_):
    result = run("measure", "m0", "m4", "--device", "fake", "--format", format_)
    read = {"json": json.loads, "yaml": yaml.safe_load, "csv": lambda text: text.splitlines()[1:]}[format_]
    assert len(read(result.out)) == 2
    assert result.err == ""


def test_tables_fit_80_columns(run, searched):
    for arguments in (
        ["describe", "m5"],
        ["space"],
        ["space", "efficientvit-224"],
        ["front", "r"],
        ["--help"],
    ):
        assert max(map(len, run(*arguments).out.splitlines())) <= 80, arguments


def test_search_writes_a_front_and_prints_the_next_command(run, tmp_path):
    result = run(*SEARCH, "--out", "r")
    assert result.code == 0
    assert "14/14" in result.err
    assert "evit-nas train r/evit-" in result.err.replace("\n", "")
    assert "m0" in result.out
    assert sorted(p.name for p in (tmp_path / "r").iterdir() if p.name[0] != ".") == [
        "front",
        "front.csv",
        "latencies-fake.json",
        "measurements.jsonl",
        "report.html",
        "run.yaml",
        "study.db",
    ]


def test_objectives_limits_and_a_storage_elsewhere_as_a_user_gives_them(run, tmp_path):
    wish = ("--objective", "score", "--objective", "latency", "--objective", "params", "--min-score", "-5")
    result = run(*SEARCH, *wish, "--storage", "studies.log", "--out", "r")
    assert result.code == 0
    record = yaml.safe_load((tmp_path / "r" / "run.yaml").read_text())
    assert record["settings"]["objectives"] == ["score", "latency", "params"]
    assert record["settings"]["limits"]["score"] == -5
    assert (tmp_path / "studies.log").exists()
    assert not (tmp_path / "r" / "study.db").exists()
    assert "score ≥ -5" in (tmp_path / "r" / "report.html").read_text()
    assert run("front", "r").out == result.out


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (("--objective", "speed"), "input should be 'score', 'latency', 'params'"),
        (("--engine", "speed"), "Invalid value for '--engine': 'speed' is not one of 'local', 'ray'."),
        (("--objective", "score", "--objective", "score"), "each objective can be given once, got 'score' twice"),
        (("--max-energy", "40"), "--max-energy must be a positive number with a unit"),
        (("--max-energy", "40mJ"), "energy cannot be had on 'fake'"),
        (("--storage", "postgresql://me:secret@host/db"), "which run.yaml would keep"),
        (("--storage", "nosuch://host/db"), "the storage nosuch://host/db does not serve"),
    ],
)
def test_wrong_objectives_limits_and_storages_are_one_message(run, wrong, words):
    result = run(*SEARCH, *wrong, "--out", "r")
    assert result.code in (1, 2)
    assert words in " ".join(result.err.split())
    assert "Traceback" not in result.err


def test_the_default_run_folder_explains_itself_and_is_not_overwritten(run, tmp_path):
    run(*SEARCH)
    run(*SEARCH)
    assert sorted(os.listdir(tmp_path / "runs")) == [
        "efficientvit-tiny-fake-1.2ms",
        "efficientvit-tiny-fake-1.2ms-2",
    ]
    assert run(*SEARCH, "--out", "runs/efficientvit-tiny-fake-1.2ms").code == 2


def test_front_members_can_be_named_by_run_and_name(run, searched):
    rows = json.loads(run("front", "r", "--format", "json").out)
    assert rows[0].keys() >= {"name", "latency_ms", "score", "params", "macs", "arch", "certified"}
    assert find_arch(f"r/{rows[0]['name']}").key == rows[0]["key"]
    assert run("describe", f"r/{rows[0]['name']}").code == 0


def test_nested_values_in_csv_are_json(run, searched):
    for row in csv.DictReader(run("front", "r", "--format", "csv").out.splitlines()):
        assert ArchConfig.model_validate_json(row["arch"]).key == row["key"]


def test_a_front_file_says_what_it_is_and_how_it_was_made(run, searched):
    head = next((searched / "front").glob("*.yaml")).read_text().split("image_size")[0]
    for word in ("ms ±", "params", "not an accuracy", "evit-nas search --device fake", "seed 0", "key:"):
        assert word in head


def test_nothing_feasible_is_exit_1_with_the_way_out(run):
    result = run(*SEARCH, "--budget", "0.001ms")
    assert result.code == 1
    assert "--budget" in result.err


def test_a_current_folder_that_was_removed_is_one_message(run, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    result = run("describe", "m0")
    assert (result.code, "change to one that exists" in result.err) == (2, True)


def after_three(stop):
    """Scores that come until three networks have one."""
    left = iter(range(3))

    def score(arch, *, seed=0, names=None):
        if next(left, None) is None:
            stop()
        return fake_proxies(arch)

    return score


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_search_that_is_asked_to_end_names_the_resume_command(run, monkeypatch, number, code):
    """Ctrl-C, `docker stop` or a batch system, and a terminal that closes."""

    def stop():
        os.kill(os.getpid(), number)
        time.sleep(60)

    with monkeypatch.context() as patch:
        patch.setattr(zero_cost, "score_all", after_three(stop))
        result = run(*SEARCH, "--out", "r")
    assert result.code == code
    assert "evit-nas resume r" in result.err
    assert run("resume", "r").code == 0


def test_an_interruption_that_c_code_met_is_one_all_the_same(run, monkeypatch):
    """Whatever it returns with an exception set becomes a SystemError, as if there were a fault."""

    def stop():
        raise SystemError("returned a result with an exception set") from Interrupted(signal.SIGTERM)

    monkeypatch.setattr(zero_cost, "score_all", after_three(stop))
    result = run(*SEARCH, "--out", "r")
    assert (result.code, "evit-nas resume r" in result.err) == (143, True)


def test_what_the_caller_has_ignored_stays_ignored(run, monkeypatch):
    """As nohup has SIGHUP."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)

    def go_on(arch, *, seed=0, names=None):
        os.kill(os.getpid(), signal.SIGHUP)
        return fake_proxies(arch, seed=seed, names=names)

    monkeypatch.setattr(zero_cost, "score_all", go_on)
    assert run(*SEARCH, "--out", "r").code == 0


def test_front_says_why_a_search_ended_before_its_total(run):
    run(*SEARCH, "--trials", "99", "--patience", "3", "--out", "r")
    words = run("front", "r").err
    assert "of 99 trials: the front has not grown" in " ".join(words.split())
    assert "evit-nas resume" not in words


def test_front_of_a_damaged_record_is_one_message(run, searched):
    (searched / "study.db").write_bytes(b"no database" * 100)
    result = run("front", "r")
    assert result.code == 2
    assert "evit-nas resume r" in " ".join(result.err.split())


def test_dry_run_says_what_it_does_not_count_and_heeds_the_time(run):
    long = ("--trials", "1000000", "--time", "1m", "--accuracy", "short", "--data", "digits")
    words = " ".join(run(*SEARCH, *long, "--dry-run").err.split())
    assert "would take about 1m40s, and the trainings of --accuracy short besides" in words


def test_dry_run_says_what_would_happen_and_writes_nothing(run, tmp_path):
    result = run(*SEARCH, "--dry-run")
    assert result.code == 0
    assert "smallest" in result.out
    assert "trials would take about" in result.err
    assert os.listdir(tmp_path) == []


def test_score_with_a_run_ranks_against_its_pool(run, searched):
    (row,) = json.loads(run("score", "m0", "--run", "r", "--format", "json").out)
    assert row.keys() == {"arch", "score", *fake_proxies(tiny_arch())}


def test_score_gives_what_a_search_uses_for_the_regime_that_is_asked_for(run):
    shown = run("score", "m0", "m3", "--accuracy", "table")
    assert "score: top-1 in percent on ImageNet" in shown.err
    imagenet = json.loads(run("score", "m0", "m3", "--accuracy", "table", "--format", "json").out)
    few = json.loads(run("score", "m0", "m3", "--images", "5k", "--classes", "10", "--format", "json").out)
    assert [row["score"] for row in imagenet] == pytest.approx([63.2, 73.3], abs=0.3)
    assert [row["score"] for row in few] != [row["score"] for row in imagenet]
    assert all(row["score_low"] < row["score"] < row["score_high"] for row in [*imagenet, *few])


def test_score_with_a_run_gives_the_score_of_its_members_to_the_digit(run):
    assert run(*SEARCH, "--accuracy", "table", "--images", "5k", "--out", "r").code == 0
    member = json.loads(run("front", "r", "--format", "json").out)[-1]
    (row,) = json.loads(run("score", f"r/{member['name']}", "--run", "r", "--format", "json").out)
    assert row["score"] == pytest.approx(member["score"], abs=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--accuracy", "zero-cost", "--images", "5k"], "proxies see no images"),
        (["--run", "r", "--images", "5k"], "a run has its own score"),
    ],
)
def test_a_score_is_for_one_thing_at_a_time(run, searched, options, words):
    refused = run("score", "m0", *options)
    assert (refused.code, words in refused.err) == (2, True)


def test_space_dump_is_the_file_and_samples_load(run, tmp_path):
    for name, path in shipped_spaces().items():
        first, *rest = run("space", name, "--dump").out.splitlines(keepends=True)
        assert first.startswith("# yaml-language-server: $schema=space.schema.json ")
        assert "".join(rest) == path.read_text()
    (tmp_path / "one.yaml").write_text(run("space", "efficientvit-tiny", "--sample", "1", "--seed", "4").out)
    assert ArchConfig.load(tmp_path / "one.yaml") in SearchSpace.load("efficientvit-tiny")


def test_a_dumped_space_is_searchable(run, tmp_path):
    (tmp_path / "mine.yaml").write_text(run("space", "efficientvit-tiny", "--dump").out)
    assert run(*SEARCH, "--space", "mine.yaml").code == 0


def test_export_yaml_loads_to_the_same_architecture(run, tmp_path):
    assert run("export", "m3", "--to", "yaml").code == 0
    assert run("export", "m3", "--to", "yaml", "--out", "a/new/folder.yaml").code == 0
    for path in (tmp_path / "m3.yaml", tmp_path / "a/new/folder.yaml"):
        assert ArchConfig.load(path) == ArchConfig.preset("m3")


def test_export_onnx_is_checked_and_explains_itself(run, tmp_path):
    import onnx

    (tmp_path / "net.yaml").write_text(tiny_arch().to_yaml())
    result = run("export", "net.yaml", "--to", "onnx", "--batch", "0")
    assert result.code == 0
    assert "random weights" in result.err
    properties = {p.key: p.value for p in onnx.load(tmp_path / "net.onnx").metadata_props}
    assert ArchConfig.model_validate_json(properties["evit_nas.arch"]) == tiny_arch()


@pytest.mark.parametrize("of", ["arch", "space"])
def test_schema_is_json_schema(run, of):
    assert json.loads(run("schema", of).out)["type"] == "object"


def test_doctor_on_the_fake_device(run):
    result = run("doctor", "--device", "fake")
    assert "canary against itself" in result.out
    assert result.code == 1  # the fake canary is not equal to itself: a broken protocol must be noticed


def test_measure_shows_ratios_to_the_first_and_remembers_for_the_predictor(run, tmp_path):
    (tmp_path / "net.yaml").write_text(tiny_arch().to_yaml())
    rows = json.loads(run("measure", "m0", "net.yaml", "--device", "fake", "--format", "json").out)
    assert [row["network"] for row in rows] == ["m0", "net.yaml"]
    assert rows[0]["median_ms"] > rows[1]["median_ms"]
    assert rows[0]["conditions"]["device"] == "fake"
    shown = run("measure", "m0", "net.yaml", "--device", "fake").out
    assert "1.000×" in shown


class Moody(FakeDevice):
    """Does not run m1, and is noisy while `noise` says so."""

    noise = ""
    error = MeasurementError

    def measure(self, subject, protocol):
        if subject == ArchConfig.preset("m1"):
            raise self.error("the runtime does not like it")
        latency, samples = super().measure(subject, protocol)
        return latency.model_copy(update={"noise": self.noise}), samples


@pytest.fixture
def moody(run, monkeypatch):
    """The fake device in such a mood."""
    monkeypatch.setitem(DEVICES, "fake", Moody)
    return lambda **mood: [monkeypatch.setattr(Moody, name, value) for name, value in mood.items()]


def test_a_network_that_cannot_be_measured_costs_no_other(run, moody):
    result = run("measure", "m0", "m1", "m2", "--device", "fake", "--format", "json")
    assert [row["network"] for row in json.loads(result.out)] == ["m0", "m2"]
    assert result.code == 1
    assert "m1: the runtime does not like it" in result.err
    assert "not measured: m1" in result.err
    alone = run("measure", "m1", "--device", "fake")
    assert (alone.code, alone.out) == (1, "")


def test_a_reference_that_cannot_be_measured_costs_no_other(run, moody, monkeypatch):
    monkeypatch.setattr("evit_nas.measuring.measure_references", lambda device, protocol, note: [])
    result = run("measure", "--references", "--device", "fake")
    assert "EfficientViT-M5" in result.out
    assert (result.code, "not measured: EfficientViT-M1" in result.err) == (1, True)


def test_a_lost_link_is_not_the_networks_fault(run, moody):
    moody(error=LostLink)
    result = run("measure", "m1", "m2", "--device", "fake")
    assert (result.code, result.out) == (1, "")
    assert result.err == "evit-nas: the runtime does not like it\n"


def test_only_who_asks_for_energy_hears_that_there_is_none(run):
    assert "energy: not available here" in run("measure", "m0", "--device", "fake").err
    assert "energy" not in run("measure", "m0", "--device", "fake", "--quick").err


def test_another_image_size_is_another_figure(run):
    small, large = (
        json.loads(run("measure", "m0", "--device", "fake", "--image-size", size, "--format", "json").out)[0]
        for size in ("128", "224")
    )
    assert small["median_ms"] < large["median_ms"] / 2


def test_references_stand_beside_the_presets_with_what_was_published(run, monkeypatch):
    from evit_nas.latency import references
    from tests.fakes import latency_of

    one = references.MeasuredReference(references.REFERENCES[0], latency_of(1.5))
    monkeypatch.setattr(measuring, "measure_references", lambda device, protocol, note: [one])
    result = run("measure", "--references", "--device", "fake")
    assert "EfficientViT-M5" in result.out
    assert "77.1%" in result.out
    assert one.reference.label in result.out
    assert "none of it measured here" in result.err


def test_devices_says_why_one_cannot_run(run):
    rows = {row["device"]: row for row in json.loads(run("devices", "--format", "json").out)}
    assert rows["cpu"]["missing"] is None
    assert rows["cpu"]["version"].startswith("onnxruntime")
    assert "CUDA" in rows["cuda-onnx"]["missing"] or rows["cuda-onnx"]["version"]
    assert "cpu-int8" in run("devices").out


def test_the_predictor_is_fitted_shown_exported_and_checked(run, tmp_path):
    """On a device whose latency is exactly the MACs."""
    space = ("--device", "fake", "--space", "efficientvit-tiny")
    missing = run("latency", "show", "--device", "fake", "--threads", "1", "--batch", "2", "--session", "a.b=1")
    assert missing.code == 1
    assert "latency fit --device fake --threads 1 --batch 2 --session a.b=1" in missing.err
    fitted = run("latency", "fit", *space, "--networks", "60")
    assert fitted.code == 0, fitted.err
    assert "60 networks" in fitted.err
    shown = run("latency", "show", *space, "--export", "table.json", "--format", "json")
    (row,) = json.loads(shown.out)
    assert row["networks"] == 60
    assert row["trusted"]
    checked = run("latency", "check", *space, "--networks", "8", "--format", "json")
    assert checked.code == 0, checked.err
    assert all(abs(r["error"]) < 0.1 for r in json.loads(checked.out))
    assert len(json.loads((tmp_path / "table.json").read_text())["networks"]) == 60
    again = run("latency", "fit", *space, "--networks", "60", "--import", "table.json")
    assert "0 networks taken over" in again.err


def test_a_fit_on_a_noisy_machine_says_what_was_lost_and_the_way_out(run, moody):
    space = ("--device", "fake", "--space", "efficientvit-tiny")
    moody(noise="the canaries ran 2.00 times as long as when quiet")
    result = run("latency", "fit", *space, "--networks", "32")
    assert result.code == 1
    assert "32 of 32 figures are not kept: the machine was not quiet" in result.err
    assert "a fit needs 32 networks, 0 are known. End other work" in result.err


def test_a_check_marks_noisy_figures(run, moody):
    space = ("--device", "fake", "--space", "efficientvit-tiny")
    run("latency", "fit", *space, "--networks", "60")
    assert "*" not in run("latency", "check", *space, "--networks", "8").out
    moody(noise="the canaries ran 2.00 times as long as when quiet")
    shown = run("latency", "check", *space, "--networks", "8")
    assert shown.out.count("*") == 8
    assert "* an estimate" in shown.err
    rows = json.loads(run("latency", "check", *space, "--networks", "8", "--format", "json").out)
    assert all(row["noisy"] for row in rows)


@pytest.mark.parametrize("host", ["tiger", "[fe80::2]"])
def test_a_host_keeps_its_name_whatever_that_means_to_rich(capsys, host):
    where = f"remote:{host}:8642"
    console.say(where)
    console.emit([], console.Format.table, console.make_table(where, [where], [[where]]))
    view = views.LiveView()
    view.note(where)
    view.step(where, 1, 2)
    view._live.console.print(view._progress)
    captured = capsys.readouterr()
    assert captured.err.count(where) == 3
    assert captured.out.count(where) == 3


def test_a_search_on_two_devices_keeps_both_budgets(run):
    result = run(*SEARCH[:1], "--device", "fake", "--device", "fake:3", "--budget", "fake=9ms,fake:3=3ms", *SEARCH[5:])
    assert result.code == 0, result.err
    assert "runs/efficientvit-tiny-fake-9ms-fake-3-3ms" in result.err
    rows = json.loads(run("front", "runs/efficientvit-tiny-fake-9ms-fake-3-3ms", "--format", "json").out)
    assert all(row["latency_ms@fake:3"] <= 3 for row in rows)
