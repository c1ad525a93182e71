"""What is printed as a command can be copied and works, whatever the folders are called."""

import ast
import itertools
import re
import shlex
from pathlib import Path

import pytest

import evit_nas
from evit_nas.commands import command_line

SEARCH = ["search", "--device", "fake", "--budget", "1.2ms", "--space", "efficientvit-tiny", "--trials", "12"]
NAMES = ["my run", "it's", 'a "b" $(c)', "größe; rm *", "runs/[a]"]


def printed(text: str, after: str) -> list[str]:
    """The words of the command that `text` names after `after`: the rest of that line."""
    (line,) = [line for line in text.splitlines() if after in line]
    program, *words = shlex.split(line.split(after)[1])
    assert program == "evit-nas"
    return words


@pytest.mark.parametrize("name", NAMES)
def test_words_come_back_from_the_shell_as_they_were(name):
    assert shlex.split(command_line("resume", Path(name), 3)) == ["evit-nas", "resume", name, "3"]


@pytest.mark.parametrize("columns", ["40", "80"])
def test_the_commands_that_a_search_prints_work(call, monkeypatch, columns):
    folder = "my run's $HOME, which has a name that is longer than any terminal is wide, as names tend to be"
    first = call(*SEARCH, "--pool", "6", "--workers", "0", "--out", folder)
    monkeypatch.setenv("COLUMNS", columns)
    assert first.code == 0, first.err
    verb, member, option, _ = printed(first.err, "next:    ")
    assert (verb, option) == ("train", "--data")
    assert call("describe", member).code == 0
    again = call(*SEARCH, "--out", folder)
    assert again.code == 2
    assert call(*printed(again.err, "Continue it with: ")).code == 0
    exported = call("export", member, "--to", "onnx", "--out", f"{folder}/it's.onnx")
    assert printed(exported.err, "next:    ") == ["measure", f"{folder}/it's.onnx"]


def test_no_command_is_put_together_by_hand():
    """A command with a value in it comes from `command_line`, which quotes; constants need no quotes."""
    begun = re.compile(r"evit-nas( [a-z][\w-]*)+( --[\w-]+)* $")
    found = []
    for path in Path(evit_nas.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else []
            for part, after in itertools.pairwise(parts):
                text = part.value if isinstance(part, ast.Constant) else ""
                constant = isinstance(after, ast.FormattedValue) and ast.unparse(after.value).isupper()
                if isinstance(after, ast.FormattedValue) and not constant and begun.search(text):
                    found.append(f"{path}:{node.lineno}: {text}")
    assert not found
