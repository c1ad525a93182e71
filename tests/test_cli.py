"""The command line: exit codes, one clear message for what is wrong, data on standard output only."""

import csv
import json
import os
import subprocess
import sys

import pytest
import yaml

from evit_nas import cli
from evit_nas.accuracy import zero_cost
from evit_nas.arch import PRESETS, ArchConfig
from evit_nas.latency import DEVICES
from evit_nas.space import SearchSpace, shipped_spaces
from tests.fakes import FakeDevice, fake_proxies
from tests.networks import tiny_arch

VERBS = ("search", "resume", "front", "describe", "measure", "score", "space", "export", "schema", "doctor")


class Result:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs the command line in this process, in an empty folder, on the fake device."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setitem(DEVICES, "fake", FakeDevice)
    monkeypatch.setattr(zero_cost, "score_all", fake_proxies)

    def call(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["evit-nas", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

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
)


def test_help_lists_every_verb_and_imports_no_torch():
    code = (
        "import sys; sys.argv = ['evit-nas', '--help']\n"
        "from evit_nas.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'optuna', 'onnxruntime', 'onnx', 'ray') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(verb in shown for verb in VERBS)
    assert shown.splitlines()[-1] == "[]"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_its_options(run, verb):
    result = run(verb, "--help")
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
        (["export", "m0", "--to", "tflite"], ["tflite", "onnx"]),
        (["export", "m0", "--to", "onnx", "--weights", "none.pth"], ["none.pth", "no such file"]),
        (["schema", "run"], ["'run'"]),
        (["measure", "none.onnx", "--device", "nothing"], ["'nothing'"]),
    ],
)
def test_wrong_use_is_one_message_and_exit_2(run, arguments, words):
    result = run(*arguments)
    assert result.code == 2
    assert all(word in result.err for word in words), result.err
    assert "Traceback" not in result.err
    assert result.out == ""


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


def test_tables_fit_80_columns(run):
    run(*SEARCH, "--out", "r")
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
    assert "evit-nas export r/front/evit-" in result.err.replace("\n", "")
    assert "m0" in result.out
    assert sorted(p.name for p in (tmp_path / "r").iterdir() if p.name[0] != ".") == [
        "front",
        "front.csv",
        "measurements.jsonl",
        "run.yaml",
        "study.db",
    ]


def test_the_default_run_folder_explains_itself_and_is_not_overwritten(run, tmp_path):
    run(*SEARCH)
    run(*SEARCH)
    assert sorted(os.listdir(tmp_path / "runs")) == [
        "efficientvit-tiny-fake-1.2ms",
        "efficientvit-tiny-fake-1.2ms-2",
    ]
    assert run(*SEARCH, "--out", "runs/efficientvit-tiny-fake-1.2ms").code == 2


def test_front_members_can_be_named_by_run_and_name(run):
    run(*SEARCH, "--out", "r")
    rows = json.loads(run("front", "r", "--format", "json").out)
    assert rows[0].keys() >= {"name", "latency_ms", "score", "params", "macs", "arch", "certified"}
    assert cli.find_arch(f"r/{rows[0]['name']}").key == rows[0]["key"]
    assert run("describe", f"r/{rows[0]['name']}").code == 0


def test_nested_values_in_csv_are_json(run):
    run(*SEARCH, "--out", "r")
    for row in csv.DictReader(run("front", "r", "--format", "csv").out.splitlines()):
        assert ArchConfig.model_validate_json(row["arch"]).key == row["key"]


def test_a_front_file_says_what_it_is_and_how_it_was_made(run, tmp_path):
    run(*SEARCH, "--out", "r")
    head = next((tmp_path / "r" / "front").glob("*.yaml")).read_text().split("image_size")[0]
    for word in ("ms ±", "params", "not an accuracy", "evit-nas search --device fake", "seed 0", "key:"):
        assert word in head


def test_nothing_feasible_is_exit_1_with_the_way_out(run):
    result = run(*SEARCH, "--budget", "0.001ms")
    assert result.code == 1
    assert "--budget" in result.err


def test_an_interrupted_search_is_exit_130_and_names_the_resume_command(run, monkeypatch):
    from evit_nas.errors import Interrupted

    def stop(arch, *, seed=0, names=None):
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(zero_cost, "score_all", stop)
        result = run(*SEARCH, "--out", "r")
    assert result.code == 130
    assert "evit-nas resume r" in result.err
    assert run("resume", "r").code == 0


def test_dry_run_says_what_would_happen_and_writes_nothing(run, tmp_path):
    result = run(*SEARCH, "--dry-run")
    assert result.code == 0
    assert "smallest" in result.out
    assert "trials would take about" in result.err
    assert os.listdir(tmp_path) == []


def test_score_with_a_run_ranks_against_its_pool(run):
    run(*SEARCH, "--out", "r")
    (row,) = json.loads(run("score", "m0", "--run", "r", "--format", "json").out)
    assert row.keys() == {"arch", "score", *fake_proxies(tiny_arch())}


def test_space_dump_is_the_file_and_samples_load(run, tmp_path):
    for name, path in shipped_spaces().items():
        assert run("space", name, "--dump").out == path.read_text()
    (tmp_path / "one.yaml").write_text(run("space", "efficientvit-tiny", "--sample", "1", "--seed", "4").out)
    assert ArchConfig.load(tmp_path / "one.yaml") in SearchSpace.load("efficientvit-tiny")


def test_a_dumped_space_is_searchable(run, tmp_path):
    (tmp_path / "mine.yaml").write_text(run("space", "efficientvit-tiny", "--dump").out)
    assert run(*SEARCH, "--space", "mine.yaml").code == 0


def test_export_yaml_loads_to_the_same_architecture(run, tmp_path):
    assert run("export", "m3", "--to", "yaml").code == 0
    assert ArchConfig.load(tmp_path / "m3.yaml") == ArchConfig.preset("m3")


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
