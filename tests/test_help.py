"""What `--help` shows: verbs in groups, the options of a search in panels, examples that are commands."""

import shlex
from collections.abc import Iterator

import pytest
from typer.core import TyperGroup, TyperOption
from typer.main import get_command

from evit_nas.cli import app
from evit_nas.cli.help import EXAMPLES, GROUPS, PANELS, PLACES, START, broken
from tests.test_pages import parse


def verbs(group: TyperGroup, path: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from verbs(command, f"{path}{name} ")
        else:
            yield f"{path}{name}"


VERBS = sorted(verbs(get_command(app)))
COMMANDS = sorted({*START, *(example for examples in EXAMPLES.values() for example in examples)})
WITH_PANELS = ["search", "resume", "front"]


def options(verb: str) -> list[str]:
    context = get_command(app).commands[verb].make_context(verb, [], resilient_parsing=True)
    return [str(option.name) for option in context.command.get_params(context) if isinstance(option, TyperOption)]


@pytest.fixture
def lines(call, monkeypatch):
    """The lines of the help of a verb on a terminal of so many columns, without what is around them."""

    def lines(*words: str, columns: int = 80) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        shown = call(*words, "--help").out.splitlines()
        assert max(map(len, shown)) <= columns
        return [line.strip() for line in shown]

    return lines


def test_every_verb_has_three_examples_and_every_example_a_verb():
    assert sorted(EXAMPLES) == VERBS
    assert {verb: len(set(examples)) for verb, examples in EXAMPLES.items()} == dict.fromkeys(VERBS, 3)
    for verb, examples in EXAMPLES.items():
        assert all(shlex.split(example)[: len(verb.split()) + 1] == ["evit-nas", *verb.split()] for example in examples)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_example_is_a_command(command):
    assert parse(command) in shlex.split(command)[1:3]


@pytest.mark.parametrize("verb", VERBS)
def test_examples_are_whole_lines_on_80_columns(lines, verb):
    shown = lines(*verb.split())
    assert [line for line in shown if line in EXAMPLES[verb]] == [*EXAMPLES[verb]]


@pytest.mark.parametrize(("words", "examples"), [([], START), (["latency"], ["evit-nas latency fit"])])
def test_a_group_of_verbs_shows_where_to_begin(lines, words, examples):
    assert set(examples) <= set(lines(*words))


@pytest.mark.parametrize("verb", ["search", "front", "measure", "config", "proxies bench"])
def test_on_a_narrow_terminal_an_example_is_still_a_command_that_can_be_copied(lines, verb):
    text = "\n".join(lines(*verb.split(), columns=60))
    begun = text[text.index("Examples:\n") :].split("\n\n")[0].removeprefix("Examples:\n")
    assert begun.replace(" \\\n", " ").splitlines() == [*EXAMPLES[verb]]


def test_a_command_that_is_broken_is_the_same_to_the_shell():
    for command in COMMANDS:
        for width in (30, 50, 76):
            parts = broken(command, width)
            longest = max(map(len, command.split()))
            assert max(map(len, parts)) <= max(width, longest + 6)
            assert shlex.split("\n".join(parts).replace("\\\n", "")) == shlex.split(command)


def test_verbs_stand_in_groups(lines):
    shown = "\n".join(lines())
    assert "Commands" not in shown
    titles = [shown.index(f"─ {group} ─") for group in dict.fromkeys(GROUPS.values())]
    assert titles == sorted(titles)
    assert GROUPS.keys() == {verb.split()[0] for verb in VERBS}


@pytest.mark.parametrize("verb", WITH_PANELS)
def test_every_option_stands_in_one_panel(lines, verb):
    shown, places = lines(verb), dict[str, str]()
    assert not any("─ Options ─" in line for line in shown)
    panel = ""
    for line in shown:
        if line.startswith("╭─"):
            panel = line.strip("╭─╮ ")
        elif line.startswith("│ --"):
            name = line.split()[1].removeprefix("--").replace("-", "_")
            assert places.setdefault(name, panel) == panel
    assert places == {name.removesuffix("_"): PLACES[name] for name in options(verb)}


def test_panels_are_in_order_and_name_no_option_that_there_is_not(lines):
    assert {option for panel in PANELS.values() for option in panel} == {
        option for verb in WITH_PANELS for option in options(verb)
    }
    shown = [line.strip("╭─╮ ") for line in lines("search") if line.startswith("╭─")]
    assert shown == [*PANELS]


def test_the_first_screen_of_a_search_is_enough_to_begin_with(lines):
    first = "\n".join(lines("search")[:24])
    for word in ("latency budget", "evit-nas search --budget 5ms", "│ --budget ", "│ --device "):
        assert word in first


def test_a_paragraph_is_wrapped_where_the_terminal_ends(lines):
    assert any("time: the same command goes on" in line for line in lines("proxies", "bench"))
    assert "ssh -N -L 8642:127.0.0.1:8642 BOARD" in lines("worker", columns=60)
