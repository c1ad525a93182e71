"""What the README shows is what the program takes."""

import re
import shlex
from pathlib import Path

import pytest
import timm
import torch
from typer.core import TyperGroup
from typer.main import get_command

from evit_nas.arch import ArchConfig
from evit_nas.cli import app

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```(\w*)\n(.*?)```|^    (evit-nas [^\n]*)$", (ROOT / "README.md").read_text(), re.S | re.M)
SHELL = [
    line for language, block, indented in BLOCKS if language != "python" for line in (block + indented).splitlines()
]
INNER = re.compile(r"\$\((evit-nas [^)]*)\)")  # a command whose output is a word of another one
OUTER = re.compile(r"evit-nas [a-z][^#&>()$]*")
COMMANDS = sorted(
    {found.strip() for line in SHELL for found in (*INNER.findall(line), *OUTER.findall(INNER.sub("WORD", line)))}
)


def test_there_are_commands_to_check():
    assert len(COMMANDS) >= 6


def parse(command: str) -> str:
    """The verb that the program finds in a command, which it reads without doing it; what is wrong is raised."""
    program, *words = shlex.split(command.split(" > ")[0])
    assert program == "evit-nas"
    read = get_command(app)
    while isinstance(read, TyperGroup):
        read = read.commands[words.pop(0)]
    context = read.make_context(command, words)
    if read.name == "config":  # [RUN] and the options of search
        rest = context.args if context.args[0].startswith("-") else context.args[1:]
        get_command(app).commands["search"].make_context(command, rest)
    return read.name


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one(command):
    assert parse(command) in shlex.split(command)[1:3]


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("evit-nas serach --budget 5ms", "KeyError"),
        ("evit-nas search --bugdet 5ms", "NoSuchOption"),
        ("evit-nas front", "MissingParameter"),
        ("evit-nas train m0 --top x", "BadParameter"),
    ],
)
def test_what_is_no_command_is_found_out(command, error):
    with pytest.raises(Exception) as found:
        parse(command)
    assert found.type.__name__ == error


def test_the_python_example_runs(tmp_path, monkeypatch):
    (code,) = (block for language, block, _ in BLOCKS if language == "python" and "load_weights" in block)
    monkeypatch.chdir(tmp_path)
    (architecture,) = re.findall(r'ArchConfig\.load\("(.*?)"\)', code)
    (checkpoint,) = re.findall(r'load_weights\(model, "(.*?)"\)', code)
    Path(architecture).write_text(ArchConfig.preset("m4").to_yaml())
    torch.save(timm.create_model("efficientvit_m4").state_dict(), checkpoint)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["logits"].shape == (1, 1000)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "runs/README.md"])
def test_every_file_that_a_page_links_exists(page):
    text = (ROOT / page).read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    assert all((ROOT / page).parent.joinpath(link).exists() for link in links)
