"""The page of an analysis: what stands on it, that it is whole, and how it looks in a browser."""

from __future__ import annotations

import re

import pytest

from evit_nas.analysis.figures import figures
from evit_nas.analysis.page import write_page
from evit_nas.analysis.proportion import Proportion, TrainedVariant, Variant, variants
from evit_nas.analysis.results import INNER, Analysis, BlockHeads, Channels
from evit_nas.analysis.suggest import suggest_space
from evit_nas.arch import ArchConfig
from evit_nas.config import Conditions, ShortRecipe
from evit_nas.errors import UsageError
from evit_nas.latency.profile import take_apart
from evit_nas.space import SearchSpace
from tests.fakes import latency_of
from tests.networks import tiny_arch
from tests.test_profile import nodes_lasting, trace_of
from tests.test_report import browser  # noqa: F401 (a fixture)

NASTY = "<b>m0</b>"


def analysis(name: str, *, profiled: bool = True, known: bool = True) -> Analysis:
    profile = take_apart(trace_of(*[nodes_lasting(52, 11, 3, 42)] * 8), 0.1, 0.5, 10.0, Conditions())
    parts = [
        Channels(
            name=f"{kind}{stage}", kind=kind, stage=stage, importance=(1.0 + stage, 0.5, 2.0, 3.0 * (kind == "ffn"))
        )
        for stage in range(3)
        for kind in (*INNER, "width")
    ]
    return Analysis(
        network=name,
        arch=tiny_arch(),
        data="digits",
        images=100,
        training_top1=91.5 if known else None,
        profile=profile if profiled else None,
        heads=tuple(BlockHeads(block=f"stages.{i}", stage=i, similarity=(0.1 * i, 0.2, 0.9)) for i in range(3)),
        channels=tuple(parts) if known else (),
        notes=() if known else ("no importance of channels",),
    )


@pytest.fixture
def proportion():
    points = [
        TrainedVariant(variant=Variant(name=name, arch=arch, latency=latency_of(3.0)), accuracy=(80.0 + i, 82.0 + i))
        for i, (name, arch) in enumerate(variants(ArchConfig.preset("m0")))
    ]
    return Proportion(data="digits", recipe=ShortRecipe(), target_ms=3.0, points=tuple(points))


@pytest.fixture
def page(tmp_path, proportion):
    one = analysis(NASTY)
    suggestion = suggest_space(NASTY, one.arch, one.channels, SearchSpace.load("efficientvit-96"))
    both = [one, analysis("deit", known=False)]
    write_page(tmp_path / "analysis.html", both, proportion=proportion, suggestion=suggestion)
    return tmp_path / "analysis.html"


def charts(page) -> list[str]:
    return re.findall(r'<figure class="chart" id="([^"]*)"', page.read_text())


def test_all_four_instruments_are_on_the_page(page):
    assert charts(page) == [
        *("operators-0", "blocks-0", "operators-1", "blocks-1"),
        *("heads", "channels-0", "proportion"),
    ]


def lengths(chart) -> dict[str, dict[str, float]]:
    """Kind of bars -> what each is called -> how long it is."""
    return {
        one.name: {box.tip.splitlines()[0]: box.x[1] - box.x[0] for box in one.boxes}
        for one in chart.series
        if one.boxes
    }


def test_the_charts_hold_the_figures():
    drawn = figures([analysis("m0")], None, 0.5)
    kinds = lengths(drawn["operators-0"])
    assert kinds["compute"] == pytest.approx({"Conv": 0.05, "Gemm": 0.04})
    assert kinds["memory-bound"] == pytest.approx({"ReorderOutput": 0.009, "Reshape": 0.001})
    kinds = lengths(drawn["blocks-0"])
    assert kinds["memory-bound"] == pytest.approx({"head": 0.01, "stem": 0.0}, abs=1e-9)
    assert kinds["compute"] == pytest.approx({"head": 0.04, "stem": 0.05})
    heads, means = drawn["heads"].series
    assert [y for _, y in means.line] == pytest.approx([1.1 / 3, 1.2 / 3, 1.3 / 3])
    assert len(heads.points) == 9
    assert [one.name for one in drawn["channels-0"].series] == ["stage 1", "stage 2", "stage 3"]


def test_bars_of_one_block_stand_end_to_end():
    compute, bound = figures([analysis("m0")], None, 0.5)["blocks-0"].series
    assert [box.x[1] for box in compute.boxes] == [box.x[0] for box in bound.boxes]
    assert [box.y for box in compute.boxes] == [box.y for box in bound.boxes]


def test_points_stand_at_share_and_mean_accuracy(proportion):
    points = figures([], proportion, 0.5)["proportion"].series[-1].points
    assert [point.x for point in points] == pytest.approx([point.variant.share for point in proportion.points])
    assert [point.y for point in points] == pytest.approx([81.0 + i for i in range(10)])
    assert [point.y_bar for point in points] == [pytest.approx((80.0 + i, 82.0 + i)) for i in range(10)]


def test_names_are_text_and_nothing_is_loaded(page):
    text = page.read_text()
    assert NASTY not in text
    assert "&lt;b&gt;m0&lt;/b&gt;" in text
    assert not re.search(r'https?://|\bsrc=|href="[^#]|@import|url\(', text)
    assert "default-src 'none'" in text


def test_what_is_not_known_is_left_out(tmp_path):
    write_page(tmp_path / "a.html", [analysis("deit", profiled=False, known=False)])
    assert charts(tmp_path / "a.html") == ["heads"]
    text = (tmp_path / "a.html").read_text()
    assert "no importance of channels" in text
    assert "Which channels matter" not in text
    assert "Where the time goes" not in text


def test_narrowings_are_listed_with_their_reasons(page):
    assert re.search(
        r"<code>ffn_ratio</code>: 1.0 to 3.0 became 2.0 to 3.0, for 75% of its ffn channels stay", page.read_text()
    )


def test_nothing_to_show_and_a_place_that_cannot_be_written_are_refused(tmp_path, proportion):
    with pytest.raises(UsageError, match="needs an analysis or a study"):
        write_page(tmp_path / "a.html")
    with pytest.raises(UsageError, match="cannot write"):
        write_page(tmp_path / "no" / "a.html", proportion=proportion)


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_draws_it_without_an_error_or_a_request(page, browser, width):  # noqa: F811
    shown = browser.new_page(viewport={"width": width, "height": 900})
    wrong = []
    shown.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    shown.on("pageerror", lambda error: wrong.append(str(error)))
    shown.on("request", lambda asked: wrong.append(asked.url) if asked.url.startswith("http") else None)
    shown.goto(page.as_uri())
    assert shown.evaluate("document.documentElement.scrollWidth") == width
    assert shown.locator("#proportion circle").count() == 10
    assert wrong == []
    shown.close()
