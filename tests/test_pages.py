"""What the pages show is what the program takes: every command is read by it, every link leads somewhere."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml
from typer.core import TyperGroup
from typer.main import get_command

import evit_nas
from evit_nas.cli import app

ROOT = Path(__file__).parent.parent
RESULTS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/results/*.md"))
SAID = ["README.md", "CONTRIBUTING.md", "runs/README.md", "runs/reference/README.md", "benchmarks/README.md"]
SAID += sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md"))
PAGES = [*SAID, *RESULTS]

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```|^    (evit-nas [^\n]*)$", re.S | re.M)
INLINE = re.compile(r"`(evit-nas [a-z][^`\n]*)`")
INNER = re.compile(r"\$\((evit-nas [^)]*)\)")  # a command whose output is a word of another one
TALK = re.compile(r"(?!next:)[a-z]+:")  # of the program, in a transcript
OUTER = re.compile(r"(?<![/\w-])evit-nas [a-z](?:[^#&>()$|]|(?<=\w)#|\$(?=[A-Z]))*")


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def commands(page: str) -> set[str]:
    """Those in blocks that are no Python, and those in the text."""
    blocks = [block + indented for language, block, indented in BLOCK.findall(read(page)) if language in ("", "text")]
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if not TALK.match(line)]
    return {
        found.strip()
        for line in [*lines, *INLINE.findall(read(page))]
        for found in (*INNER.findall(line), *OUTER.findall(INNER.sub("WORD", line)))
    }


COMMANDS = sorted({command for page in SAID for command in commands(page)})


def test_there_are_commands_to_check():
    assert all(commands(page) for page in ("README.md", "docs/searching.md", "docs/ray.md", "docs/photographs.md"))


def parse(command: str) -> str:
    """The verb that the program finds in a command, which it reads without doing it; what is wrong is raised."""
    program, *words = shlex.split(command.split(" > ")[0])
    assert program == "evit-nas"
    read = get_command(app)
    while isinstance(read, TyperGroup):
        read = read.commands[words.pop(0)]
    context = read.make_context(command, words)
    if read.name == "config":  # [RUN] and the options of search
        rest = context.args if not context.args or context.args[0].startswith("-") else context.args[1:]
        get_command(app).commands["search"].make_context(command, rest)
    return read.name


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one(command):
    verb = command.removeprefix("evit-nas ")
    assert verb in get_command(app).commands or parse(command) in shlex.split(command)[1:3]


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


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_links_exists(page):
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", read(page)) if not link.startswith("http")]
    assert all((ROOT / page).parent.joinpath(link).exists() for link in links)


def test_the_pages_of_the_site_are_all_in_its_menu():
    def files(menu):
        for entry in menu:
            for value in entry.values() if isinstance(entry, dict) else [entry]:
                yield from files(value) if isinstance(value, list) else [value]

    menu = list(files(yaml.safe_load(read("mkdocs.yml"))["nav"]))
    assert sorted(menu) == sorted(path.name for path in ROOT.glob("docs/*.md"))


def test_the_first_page_is_of_two_screens():
    assert len(read("README.md").splitlines()) <= 150


def python_blocks(page: str) -> list[str]:
    return [block for language, block, _ in BLOCK.findall(read(page)) if language == "python"]


@pytest.mark.parametrize(("page", "number"), [(page, n) for page in SAID for n in range(len(python_blocks(page)))])
def test_every_example_in_python_is_python(page, number):
    code = compile(python_blocks(page)[number], page, "exec")
    assert {"evit_nas", "predict"} & set(code.co_names)  # which it is an example of


def test_the_example_of_a_network_runs(tmp_path, monkeypatch):
    (code,) = (block for block in python_blocks("docs/python.md") if "load_weights" in block)
    monkeypatch.chdir(tmp_path)
    (checkpoint,) = re.findall(r'load_weights\(model, "(.*?)"\)', code)
    torch.save(timm.create_model("efficientvit_m4").state_dict(), checkpoint)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["logits"].shape == (1, 1000)


@pytest.mark.slow
def test_quickstart_goes_from_a_budget_to_a_file(tmp_path, monkeypatch, capsys):
    """In earnest, but for the number of networks."""
    search = evit_nas.search
    monkeypatch.setattr(evit_nas, "search", lambda **words: search(**words | {"trials": 6, "pool": 4}))
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "examples" / "quickstart.py"), run_name="__main__")
    assert Path("runs/quickstart/best.onnx").exists()
    assert Path("runs/quickstart/report.html").exists()
    assert "written: runs/quickstart/best.onnx" in capsys.readouterr().out


def test_a_proxy_of_ones_own_is_judged_on_trained_networks(monkeypatch, capsys):
    from evit_nas.accuracy import zero_cost

    monkeypatch.setattr(zero_cost, "PROXIES", dict(zero_cost.PROXIES))
    monkeypatch.setattr(sys, "argv", ["custom_proxy.py", "--networks", "4"])
    runpy.run_path(str(ROOT / "examples" / "custom_proxy.py"), run_name="__main__")
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split()[0] for row in rows] == ["score", "params", "macs", "naswot", "half_open"]
