"""Tables at every width, and what becomes of output that nobody takes."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from evit_nas.console import Sheet, make_table, say

NAMES = ["runs/efficientvit-224-cpu-5ms/evit-0.62ms-0.3M", "runs/my run/evit-14.13ms-12.5M.yaml", "m0", "größe[b]"]
FIGURES = ["0.125", "±7.3%*", "85.20 ± 1.05", "1,069,440"]
PROSE = ["", "ONNX Runtime, quantised to 8 bits", "no: onnxruntime 1.32.0 has no CUDAExecutionProvider; install it."]


def shown(sheet: Sheet, width: int) -> str:
    console = Console(width=width, highlight=False, emoji=False, color_system=None)
    with console.capture() as capture:
        console.print(sheet, crop=False)
    return capture.get()


def sheets(count: int) -> list[Sheet]:
    """Tables of names, figures and prose at random."""
    rng = random.Random(0)
    made = []
    for _ in range(count):
        figures, prose = rng.randint(0, 6), rng.randint(0, 2)
        rows = [
            [rng.choice(NAMES), *rng.choices(FIGURES, k=figures), *rng.choices(PROSE, k=prose)]
            for _ in range(rng.randint(1, 4))
        ]
        words = [f"word{i}" for i in range(prose)]
        columns = ["network", *(f"peak\nms{i}" for i in range(figures)), *words]
        made.append(make_table("runs in [a]/folder/with a name", columns, rows, ["network", *words]))
    return made


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 200])
def test_names_numbers_and_words_are_whole_at_any_width(width):
    for sheet in sheets(40):
        text = shown(sheet, width)
        for row in sheet.rows:
            for column, cell in zip(sheet.columns, row, strict=True):
                for whole in cell.split() if column.startswith("word") else [cell]:
                    assert whole in text


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 200])
def test_what_is_wider_than_the_terminal_is_a_record_and_not_a_table(width):
    rulers = 0
    for sheet in sheets(40):
        lines = shown(sheet, width).splitlines()
        if ruled := any("──" in line for line in lines):
            assert max(map(len, lines[1:])) <= width
        rulers += ruled
    assert rulers > 0 if width > 20 else rulers < 40


def test_a_table_without_a_width_is_one_line_a_row():
    for sheet in sheets(40):
        lines = [line for line in shown(sheet, 10_000).splitlines() if line.strip()]
        assert len(lines) - len(sheet.rows) in (3, 4)  # the title, one or two lines of header, and a rule


def test_columns_that_may_go_do_so_in_turn_and_are_named():
    rows = [["a-long-run-name", "done", "30/30", "cpu remote:localhost", "2026-01-01"]]
    columns = ["run", "state", "trials", "device\nname", "begun"]
    sheet = make_table(
        "runs", columns, rows, ["run", "state", "device\nname"], spare=["absent", "begun", "device\nname"]
    )
    gone = {width: " ".join(shown(sheet, width).split()).partition("no room for ")[2] for width in (80, 50, 34)}
    assert gone == {80: "", 50: "begun: --format csv has all", 34: "begun, device name: --format csv has all"}
    assert "2026-01-01" not in shown(sheet, 50)
    assert "remote:localhost" in shown(sheet, 50)
    record = shown(sheet, 20)
    assert all(cell in record for cell in rows[0])
    assert "no room" not in record


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_blocks_without_room_beside_each_other_stand_below_with_the_names(width):
    columns = ["operator", *(f"{'' if i else network}\n{name}" for network in "123456" for i, name in enumerate("ab"))]
    rows = [[kind, *(f"{place}.{len(kind):03}" for place in range(12))] for kind in ("Conv", "GlobalAveragePool")]
    text = shown(make_table("Operators", columns, rows, block=2), width)
    tables = text.count("──\n") + text.count("── \n")
    assert max(map(len, text.splitlines())) <= width
    assert tables == {40: 6, 60: 2, 80: 2, 120: 1, 200: 1}[width]
    assert text.count("GlobalAveragePool") == tables
    assert all(text.count(f" {cell} ") == 1 for cell in rows[1][1:])


def test_a_record_has_no_line_for_what_is_empty():
    text = shown(make_table("doctor", ["check", "result", ""], [["a" * 30, "b" * 30, ""], ["c", "d", "ok"]]), 40)
    assert [line.split()[-1] for line in text.splitlines()[1:] if line] == ["a" * 30, "b" * 30, "c", "d", "ok"]


def command_line(*arguments: str, **streams) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONUNBUFFERED", "COLUMNS")}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    return subprocess.run([sys.executable, "-m", "evit_nas", *arguments], env=environment, check=False, **streams)


full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")


@full
@pytest.mark.parametrize(
    "arguments", [["space"], ["space", "--format", "json"], ["schema", "arch"], ["search", "--help"]]
)
def test_standard_output_on_a_full_disk_is_one_sentence_and_exit_1(arguments):
    with open("/dev/full", "w") as stdout:
        ended = command_line(*arguments, stdout=stdout, stderr=subprocess.PIPE, encoding="utf-8")
    assert ended.returncode == 1
    assert ended.stderr == "evit-nas: standard output cannot be written: No space left on device.\n"


@full
def test_talk_on_a_full_disk_is_lost_but_not_the_exit_code():
    with open("/dev/full", "w") as stderr:
        assert command_line("front", "nowhere", stderr=stderr, stdout=subprocess.PIPE).returncode == 2


def test_output_that_nobody_reads_ends_quietly():
    reading, writing = os.pipe()
    os.close(reading)
    ended = command_line("space", "--format", "json", stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (1, b"")


def test_talk_is_one_line_at_any_width(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    command = "evit-nas resume " + "'a long path to a run folder'/" * 5
    say(command)
    assert capsys.readouterr().err == command + "\n"
