"""Verbs on narrow terminals and in pipes: every name is whole, and so is every command."""

import shlex
from pathlib import Path

import pytest

from evit_nas.latency import profile as profiling
from tests.networks import tiny_arch
from tests.test_profile import by_hand  # noqa: F401 - a fixture

WIDTHS = (60, 80, 120, None)
SEARCH = ("--device", "fake", "--budget", "1.2ms", "--space", "tiny", "--trials", "10", "--pool", "5", "--workers", "0")
FOLDER = "runs/efficientvit-224-cpu-5ms/front"
NETWORKS = [f"{FOLDER}/evit-{ms}ms-7.8M.yaml" for ms in ("4.72", "4.73", "14.74")]


@pytest.fixture
def at(call, monkeypatch):
    """What a command prints on a terminal of so many columns, or into a pipe (None)."""

    def at(width: int | None, *arguments: str) -> str:
        monkeypatch.delenv("COLUMNS", raising=False)
        if width is not None:
            monkeypatch.setenv("COLUMNS", str(width))
        text = call(*arguments).out
        assert "…" not in text
        return text

    return at


@pytest.fixture
def networks(tmp_path):
    (tmp_path / FOLDER).mkdir(parents=True)
    for name in NETWORKS:
        (tmp_path / name).write_text(tiny_arch().to_yaml())


def widest(text: str) -> int:
    return max(map(len, text.splitlines()))


def test_runs(at, call):
    names = ["efficientvit-224-fake-1.2ms", "flowers, of which there are 102 kinds, first try"]
    for name in names:
        assert call("search", *SEARCH, "--out", f"runs/{name}").code == 0
    for width in WIDTHS:
        text = at(width, "runs")
        lines = text.splitlines()
        assert widest(text) <= (width or 200)
        assert any(names[1] in line for line in lines)
        if width != 60:
            assert all(any(line.startswith(f" {name} ") and "10/10" in line for line in lines) for name in names)
        assert ("no room for begun, device:" in text) is (width == 80)


def test_front(at, call):
    assert call("search", *SEARCH, "--out", "r").code == 0
    for width in WIDTHS:
        text = at(width, "front", "r")
        assert widest(text) <= (width or 200)
        names = [path.stem for path in Path("r/front").iterdir()]
        assert all(any(line.startswith(f" {name} ") for line in text.splitlines()) for name in names)


def test_measure(at, networks):
    for width in WIDTHS:
        text = at(width, "measure", *NETWORKS, "m0", "--device", "fake", "--quick")
        assert widest(text) <= max(width or 200, len(f"network  {NETWORKS[-1]}"))
        assert all(any(name in line for line in text.splitlines()) for name in NETWORKS)
        assert ("no room for p90 ms, typ p90" in text) is (width == 80)
        assert text.count("──") == 0 if width == 60 else all(f" {name} " in text for name in NETWORKS)


def test_profile(at, networks, by_hand, monkeypatch):  # noqa: F811
    monkeypatch.setattr(profiling, "profile", lambda *_: by_hand)
    for width in WIDTHS:
        text = at(width, "profile", *NETWORKS)
        assert widest(text) <= max(width or 200, len(f"1: {NETWORKS[-1]}"))
        legend = [f"{number}: {name}" for number, name in enumerate(NETWORKS, start=1)]
        assert [line for line in text.splitlines() if line in legend] == legend * 2  # operators, and blocks
        assert text.count("ReorderOutput *") == (2 if width == 60 else 1)
        assert " m0 " in at(width, "profile", "m0", "m4")


def test_score(at):
    for width in WIDTHS:
        text = at(width, "score", "m0", "m1", "m2", "m3", "m4", "m5")
        assert widest(text) <= (width or 200)
        assert text.count("az_expressivity") == (2 if width in (60, 80) else 1)


def test_latency_show(at, call):
    assert call("latency", "fit", "--device", "fake", "--space", "tiny", "--networks", "40").code == 0
    for width in WIDTHS:
        text = at(width, "latency", "show", "--device", "fake", "--space", "tiny")
        assert widest(text) <= (width or 200)
        assert "a search relies on it" in text


def test_what_is_to_be_done_next_is_one_line(call, monkeypatch):
    folder = "a run of mine with images of flowers and a longer name than any terminal is wide, as names tend to be"
    for width in ("40", "80"):
        monkeypatch.setenv("COLUMNS", width)
        result = call("search", *SEARCH, "--out", f"{width} {folder}")
        (line,) = [line for line in result.err.splitlines() if line.startswith("next:")]
        _, *words = shlex.split(line)
        assert words[:2] == ["evit-nas", "train"]
        assert words[2].startswith(f"{width} {folder}/evit-")
        again = call("search", *SEARCH, "--out", f"{width} {folder}")
        assert again.err.endswith(f"evit-nas resume '{width} {folder}'\n")
