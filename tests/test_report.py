"""The report of real searches on fake devices: what it says, what it never says, and how it looks in a browser."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from functools import cache
from html import unescape
from itertools import pairwise

import pytest

from evit_nas.accuracy import scorecard, zero_cost
from evit_nas.accuracy.imagenet import imagenet_card
from evit_nas.accuracy.learned import LearnedAccuracy
from evit_nas.accuracy.scorecard import score_card
from evit_nas.accuracy.table import LabelTable
from evit_nas.arch import PRESETS, ArchConfig
from evit_nas.config import SHIPPED, SearchSettings
from evit_nas.errors import Infeasible, UsageError
from evit_nas.latency import DEVICES
from evit_nas.latency.predictor import compare
from evit_nas.latency.references import REFERENCES, MeasuredReference
from evit_nas.published import IMAGENET_1K, TOP1
from evit_nas.regime import IMAGENET, Regime
from evit_nas.report import findings, worth
from evit_nas.report.figures import figures, pareto, staircase
from evit_nas.report.findings import find, sketch
from evit_nas.report.page import EVIDENCE, write_report
from evit_nas.report.plot import write_plot
from evit_nas.runs import Run
from evit_nas.searching.front import Candidate, score_text
from evit_nas.searching.judges import JUDGES
from evit_nas.searching.record import give_up, load_front, readmit
from evit_nas.searching.storage import open_study
from evit_nas.searching.study import Search
from evit_nas.space import SearchSpace
from tests.fakes import FakeDevice, fake_proxies, latency_of
from tests.networks import tiny_arch

TRIALS = 80  # enough for predictions and for importances
NASTY = "<script>alert(1)</script>"


class StopsAt:
    """Watches a search and kills it after that many networks."""

    def __init__(self, done=None):
        self.done = done

    def note(self, message): ...

    def step(self, what, done, total): ...

    def update(self, status):
        if status.done == self.done:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """Makes a run by a real search, with fake latencies and proxies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DEVICES, "fake", FakeDevice)
        patch.setattr(zero_cost, "score_all", fake_proxies)

        def search(
            budgets=(1.2,),
            trials=12,
            stop=None,
            space="efficientvit-tiny",
            name="run",
            command="evit-nas search",
            **more,
        ) -> Run:
            patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))  # each learns on its own
            devices = ("fake", "fake:2")
            targets = [
                {"conditions": {"device": device}, "budget_ms": budget_ms}
                for device, budget_ms in zip(devices, budgets, strict=False)
            ]
            settings = SearchSettings(
                space_name="x", space=SearchSpace.load(space), targets=targets, trials=trials, pool=5, **more
            )
            run = Run.create(tmp_path_factory.mktemp("runs") / name, settings, {"processor": "imaginary"}, command)
            with suppress(KeyboardInterrupt, Infeasible):
                Search(run, StopsAt(stop)).run()
            return run

        yield search


@pytest.fixture(scope="module")
def finished(searched):
    return searched(trials=TRIALS)


@pytest.fixture(scope="module")
def unfinished(searched):
    return searched(trials=40, stop=9)


@pytest.fixture(scope="module")
def infeasible(searched):
    return searched(budgets=(0.33,), trials=8)


@pytest.fixture(scope="module")
def two_devices(searched):
    return searched(budgets=(1.2, 1.8), trials=20)


@pytest.fixture(scope="module")
def tail(searched):
    return searched(budget_stat="p90")


@cache
def page_of(run: Run) -> str:
    return write_report(run).read_text()


def charts(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="charts">(.*?)</script>', page, re.DOTALL)[1])


def traces(page: str, place="pareto-0") -> dict:
    return {trace["name"]: trace for trace in charts(page)[place]["data"] if "name" in trace}


def without_scripts(page: str) -> str:
    return re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)


def text(page: str) -> str:
    """What a reader sees, in one line."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", without_scripts(page))).split())


def test_the_head_line_says_how_many_networks_keep_which_budget_where(finished):
    found = find(finished)
    shown = text(page_of(finished))
    assert f"{len(found.front.members)} networks within 1.2 ms on fake" in shown
    assert (
        f"{TRIALS} networks evaluated: {len(found.measured)} measured, {len(found.predicted)} only predicted" in shown
    )
    assert "Every member of the front is certified" in shown
    best = max(found.front.members, key=lambda member: member.score)
    assert re.search(rf"best {best.latency.median_ms:.2f} ms ± 1.0 % score {best.score:.3f}", shown)


def test_every_network_is_one_point_and_what_was_only_predicted_is_a_kind_of_its_own(finished):
    found, drawn = find(finished), traces(page_of(finished))
    assert found.predicted  # else there is nothing to keep apart
    assert drawn["predicted only"]["x"] == [one.predicted_ms[0] for one in found.predicted]
    assert drawn["predicted only"]["marker"]["symbol"] == "circle-open"
    measured = {candidate.arch.key: candidate for candidate in [*found.measured, *found.front.references]}
    assert not {one.arch.key for one in found.predicted} & set(measured)
    points = sum(len(drawn[name]["x"]) for name in ("measured", "front", "the paper’s m0–m5"))
    assert points == len(measured)


def test_the_front_carries_its_error_bars(finished):
    front, drawn = find(finished).front.members, traces(page_of(finished))["front"]
    assert drawn["x"] == [member.latency.median_ms for member in front]
    assert drawn["y"] == [member.score for member in front]
    assert drawn["error_x"]["array"] == [member.latency.median_ms * member.latency.rel_error for member in front]
    assert sketch(front[0].arch) in drawn["hovertext"][0]


def test_scores_carry_their_intervals_where_those_are_known(finished):
    found = find(finished)
    assert not any("error_y" in trace for trace in traces(page_of(finished)).values())
    members = [replace(m, interval=(m.score - 0.2, m.score + 0.1)) for m in found.front.members]
    drawn = pareto(replace(found, front=replace(found.front, members=members)), 0)
    bars = next(trace for trace in drawn.data if trace.name == "front").error_y
    assert list(bars.arrayminus) == pytest.approx([0.2] * len(members))
    assert list(bars.array) == pytest.approx([0.1] * len(members))


def test_the_papers_networks_are_labelled(finished):
    assert traces(page_of(finished))["the paper’s m0–m5"]["text"] == ["m0", "m1", "m2", "m3", "m4", "m5"]


def test_a_staircase_leaves_out_what_is_beaten_on_that_device():
    def member(score, *ms):
        return Candidate("", tiny_arch(), score, tuple(latency_of(one) for one in ms), certified=True, trial=0)

    members = [member(-1.0, 3.0, 1.0), member(-2.0, 1.0, 4.0), member(-1.5, 2.0, 0.5)]
    assert staircase(members, 0, "median") == ([1.0, 2.0, 3.0], [-2.0, -1.5, -1.0])
    assert staircase(members, 1, "median") == ([0.5, 1.0], [-1.5, -1.0])
    assert staircase([], 0, "median") == ([], [])


def test_convergence_is_the_hypervolume_of_what_was_measured_within_the_budget(finished):
    found = find(finished)
    in_order = sorted((c for c in found.measured if c.latency.median_ms <= 1.2), key=lambda c: c.trial)
    lowest = min(candidate.score for candidate in in_order)

    def volume(candidates):
        area, reached = 0.0, lowest
        for candidate in sorted(candidates, key=lambda c: c.latency.median_ms):
            area += max(candidate.score - reached, 0) * (1.2 - candidate.latency.median_ms)
            reached = max(reached, candidate.score)
        return area

    shares = dict(found.convergence)
    assert list(shares) == list(range(1, TRIALS + 1))
    assert all(later >= earlier for earlier, later in pairwise(shares.values()))
    assert shares[TRIALS] == pytest.approx(1)
    first = [c for c in in_order if c.trial < 20]  # this search repeats nothing that early
    assert shares[20] == pytest.approx(volume(first) / volume(in_order))


def test_predictions_are_compared_with_what_was_measured_after_them(finished):
    found, page = find(finished), page_of(finished)
    one = found.forecasts[0]
    assert one.names
    assert f"fake: {compare(one.predicted_ms, one.measured_ms)}." in text(page)
    assert charts(page)["forecast-0"]["data"][1]["x"] == one.measured_ms


def test_importances_need_networks_enough(finished, unfinished):
    assert sum(find(finished).importance.values()) == pytest.approx(1)
    assert len(charts(page_of(finished))["importance"]["data"][0]["x"]) == 12
    assert find(unfinished).importance == {}
    assert "too few networks within the budget to say which parameters matter" in text(page_of(unfinished))


def test_each_member_has_its_yaml_which_loads_to_the_same_architecture(finished, tmp_path):
    listed = re.findall(r"<pre>(.*?)</pre>", page_of(finished), re.DOTALL)
    for member, yaml in zip(find(finished).front.members, listed, strict=True):
        (tmp_path / "arch.yaml").write_text(unescape(yaml))
        assert ArchConfig.load(tmp_path / "arch.yaml") == member.arch
        assert f"# {member.name}\n" in yaml


def test_what_a_user_wrote_is_shown_and_never_run(searched):
    page = page_of(searched(name=NASTY.replace("/", ""), command=f"evit-nas search --out '{NASTY}'", trials=6))
    assert "<script>alert" not in page
    assert f"evit-nas search --out '{NASTY}'" in text(page)


def test_a_device_may_be_called_anything(finished):
    found = find(finished)
    target = found.settings.targets[0]
    named = target.model_copy(update={"conditions": target.conditions.model_copy(update={"device": NASTY})})
    odd = replace(found, settings=found.settings.model_copy(update={"targets": (named,)}))
    assert NASTY not in pareto(odd, 0).layout.xaxis.title.text
    assert "&lt;script&gt;" in pareto(odd, 0).layout.xaxis.title.text


def test_the_page_loads_nothing(finished):
    page = page_of(finished)
    assert "default-src 'none'" in page
    ours = page.replace(re.search(r"<script>/\*\*\n\* plotly.js.*?</script>", page, re.DOTALL)[0], "")
    assert len(ours) < 1_000_000  # Plotly itself is out
    assert not re.search(r"https?://|\b(src|href)=|@import|url\(", ours)


def test_the_same_record_gives_the_same_bytes(finished):
    assert page_of(finished) == write_report(Run.open(finished.path)).read_text()


def test_a_search_that_goes_on_says_how_far_it_is_and_what_is_not_certified(unfinished):
    page, front = page_of(unfinished), find(unfinished).front.members
    assert "The search is at 9 of 40 networks" in text(page)
    assert "None of the front’s members are certified so far" in text(page)
    assert len(traces(page)["front, not certified"]["x"]) == len(front) > 0
    assert text(page).count("not certified") >= len(front)


def test_a_search_that_ended_before_its_total_says_why(finished, monkeypatch):
    found = find(finished)
    early = replace(found, front=replace(found.front, total=999, ended="the time is over"))
    monkeypatch.setattr("evit_nas.report.page.find", lambda run: early)
    page = text(write_report(finished).read_text())
    assert f"The search ended after {TRIALS} of 999 networks: the time is over." in page
    assert "evit-nas resume" not in page


def test_a_front_with_a_noisy_figure_is_not_called_certified(finished, monkeypatch):
    found = find(finished)
    assert "Every member of the front is certified" in text(page_of(finished))
    first, *others = found.front.members
    noisy = replace(first, latencies=(first.latency.model_copy(update={"noise": "others were at work"}),))
    unsure = replace(found, front=replace(found.front, members=[noisy, *others]))
    monkeypatch.setattr("evit_nas.report.page.find", lambda run: unsure)
    page = text(write_report(finished).read_text())
    assert "but 1 of them on a noisy machine" in page
    assert "is certified" not in page


def test_a_given_up_member_still_tells_how_good_predictions_were(finished):
    before = find(finished)
    with open_study(finished) as study:
        found = [trial.user_attrs for trial in study.get_trials()]
        key = next(one["key"] for one in found if one.get("latencies") and one["predicted_ms"])
        give_up(study, key, "took too long")
        after = find(finished)
        readmit(study, [key])
    assert after.forecasts == before.forecasts
    assert len(after.measured) == len(before.measured) - 1


def test_nothing_within_the_budget_is_said_with_the_nearest_figure(infeasible):
    page, found = page_of(infeasible), find(infeasible)
    nearest_ms = min(candidate.latency.median_ms for candidate in found.measured)
    assert "Nothing within 0.33 ms on fake" in text(page)
    assert f"The fastest one measured takes {nearest_ms:.2f} ms ± 1.0% on fake" in text(page)
    assert set(charts(page)) == {"pareto-0"}
    assert len(traces(page)["measured"]["x"]) == 8
    assert "Every member" not in text(page)


def test_a_front_of_one_member_is_best_knee_and_fastest(unfinished, monkeypatch):
    found = find(unfinished)
    one = replace(found, front=replace(found.front, members=found.front.members[:1]))
    monkeypatch.setattr("evit_nas.report.page.find", lambda run: one)
    page = write_report(unfinished).read_text()
    assert "1 network within 1.2 ms" in text(page)
    assert "best, knee, fastest" in text(page)
    assert "parallel" not in charts(page)


def test_several_devices_have_a_chart_and_columns_each(two_devices):
    page, front = page_of(two_devices), find(two_devices).front.members
    assert "within 1.2 ms on fake and 1.8 ms on fake:2" in text(page)
    assert "fake ms spread fake:2 ms spread score" in text(page)
    for index, budget_ms in enumerate((1.2, 1.8)):
        assert traces(page, f"pareto-{index}")["front"]["x"] == [m.latencies[index].median_ms for m in front]
        assert charts(page)[f"pareto-{index}"]["layout"]["shapes"][0]["x0"] == budget_ms


def test_a_budget_on_the_90th_percentile_is_drawn_on_it(tail):
    page, front = page_of(tail), find(tail).front.members
    assert "within 1.2 ms (p90) on fake" in text(page)
    assert traces(page)["front"]["x"] == [member.latency.p90_ms for member in front]
    assert "Nothing was predicted and then measured" in text(page)


def test_what_the_score_is_worth_is_said_with_the_kind_of_evidence(finished):
    assert f"The score is {find(finished).front.origin}. {EVIDENCE['zero-cost']}" in text(page_of(finished))
    assert set(JUDGES) == set(EVIDENCE)
    assert "tau at equal latency" not in page_of(finished)  # of this space no networks were trained


def test_a_score_learned_from_trained_networks_comes_with_its_card(searched, monkeypatch):
    run = searched(trials=6, accuracy={"method": "table", "regime": Regime(images=9000, classes=12)})
    judged_by = LabelTable.load(SHIPPED)
    small = judged_by.model_copy(update={"networks": judged_by.networks[:24]})
    monkeypatch.setattr(worth.LabelTable, "load", lambda name: small)
    page = write_report(run).read_text()
    card = score_card(small, labels=(), only="predictor")
    for row in card.rows:
        assert f"{row.score} {row.iso}" in text(page)
    assert f"{card.pairs} pairs of 24 EfficientViTs trained on fashion-mnist" in text(page)
    assert [row.kind for row in card.rows] == ["size"] * 4 + ["predictor"]
    monkeypatch.setattr(scorecard, "score_card", None)  # it is judged once
    assert write_report(run).read_text() == page


@pytest.fixture(scope="module")
def for_imagenet(searched) -> Run:
    """A run whose score is for ImageNet, as that of a search is whose user says nothing else."""
    accuracy = {"method": "table", "regime": IMAGENET}
    return searched(space="efficientvit-224", budgets=(300,), trials=12, accuracy=accuracy)


def test_a_score_for_imagenet_is_judged_by_what_is_published(for_imagenet):
    page = text(page_of(for_imagenet))
    card = imagenet_card()
    for one in card.presets:
        assert f"{one.name} {one.published:.1f} % {one.predicted:.1f} % ({one.low:.1f} to {one.high:.1f})" in page
    assert f"with an error of {card.rmse:.1f} points" in page


def test_on_imagenet_published_and_expected_accuracies_stand_on_one_scale(for_imagenet):
    page, found = text(page_of(for_imagenet)), find(for_imagenet)
    papers = {one.name: one for one in found.front.references}
    assert set(papers) == set(PRESETS)
    for name, one in papers.items():
        assert one.score == pytest.approx(TOP1[IMAGENET_1K][name], abs=0.3)
        within = [m for m in found.front.members if m.latency.median_ms <= one.latency.median_ms]
        best = max(within, key=lambda member: member.score, default=None)
        assert best is None or f"{best.name} {score_text(best)} %" in page


def test_published_accuracies_are_drawn_where_the_score_is_for_imagenet(for_imagenet, finished):
    drawn = traces(page_of(for_imagenet))["published"]
    assert drawn["y"] == [TOP1[IMAGENET_1K][one.name] for one in find(for_imagenet).front.references]
    assert "published" not in traces(page_of(finished))


def test_the_report_says_where_another_regime_disagrees(for_imagenet):
    few = Regime(images=5000, classes=10)
    here, there = (load_front(for_imagenet, regime).members for regime in (None, few))
    shared = {m.arch.key for m in here} & {m.arch.key for m in there}
    page = text(page_of(for_imagenet))
    assert f"make a front of {len(there)}, {len(shared)} of them on this one too" in page
    assert f"evit-nas front {for_imagenet.path} --images 5000 --classes 10" in page


def test_the_measured_networks_of_a_run_make_another_front_under_another_regime(for_imagenet):
    few = Regime(images=5000, classes=10)
    learned = LearnedAccuracy.under(few)
    found = load_front(for_imagenet, few)
    assert found.origin == learned.origin
    for one in [*found.members, *found.references]:
        value, low, high = (float(column[0]) for column in learned.intervals([one.arch]))
        assert (one.score, *one.interval) == pytest.approx((value, low, high))
    scores = [member.score for member in found.members]  # fastest first: slower ones are there because they are better
    assert scores == sorted(scores)
    assert load_front(for_imagenet) == find(for_imagenet).front


def test_a_zero_cost_score_is_judged_where_networks_of_its_space_were_trained(searched):
    run = searched(space="efficientvit-224", budgets=(200,), trials=6)
    assert re.search(r"zero-cost aggregate -?0\.\d\d", text(write_report(run).read_text()))


def test_popular_networks_stand_beside_with_their_published_accuracy_and_in_no_chart(finished, monkeypatch):
    reference, without, front = REFERENCES[3], page_of(finished), find(finished).front.members
    assert "evit-nas measure --references --device fake" in text(without)
    ours = front[len(front) // 2]  # faster members score less
    known = MeasuredReference(reference, latency_of(ours.latency.median_ms))
    monkeypatch.setattr(findings, "known_references", lambda context: [known])
    page = write_report(finished).read_text()
    row = f"{reference.label} {ours.latency.median_ms:.2f} ± 1.0 % {reference.published_top1:.1f} %"
    assert row in text(page)
    assert "this run’s best in that time" not in text(page)  # its score is of other images
    assert charts(page) == charts(without)


def test_the_papers_accuracies_are_quoted_for_its_own_images_and_classes_only(searched, finished):
    assert "EfficientViT-M0" not in text(page_of(finished))  # 64 px and 10 classes
    large = searched(space="efficientvit-224", budgets=(200,), trials=6)
    assert re.search(r"EfficientViT-M0 [\d.]+ ± 1.0 % 63.3 %", text(page_of(large)))


def test_a_run_without_trials_is_told_how_to_go_on(searched, tmp_path):
    settings = find(searched(trials=6)).settings
    with pytest.raises(UsageError, match="evit-nas resume"):
        write_report(Run.create(tmp_path / "run", settings, {}, ""))


def test_neither_the_page_nor_the_plot_imports_torch(finished):
    code = (
        "import sys; from pathlib import Path; from evit_nas.runs import Run\n"
        "from evit_nas.report.page import write_report; from evit_nas.report.plot import write_plot\n"
        f"run = Run.open(Path({str(finished.path)!r})); write_report(run); write_plot(run, run.path / 'front.png')\n"
        "print('torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"
    assert ended.stderr == ""  # and no warning of any library


class TestPlot:
    @pytest.mark.parametrize("state", ["finished", "unfinished", "infeasible", "two_devices", "tail"])
    def test_every_run_can_be_drawn(self, state, request, tmp_path):
        run = request.getfixturevalue(state)
        write_plot(run, tmp_path / "front.svg")
        drawn = (tmp_path / "front.svg").read_text()
        for target in find(run).settings.targets:
            assert f"latency on {target.device} (ms) -->" in drawn

    def test_it_shows_what_the_page_shows_and_is_the_same_each_time(self, finished, tmp_path):
        for name in ("a.svg", "b.svg"):
            write_plot(finished, tmp_path / name)
        drawn = (tmp_path / "a.svg").read_text()
        assert drawn == (tmp_path / "b.svg").read_text()
        assert all(f"<!-- {label} -->" in drawn for label in ("m0", "m5", "front", "predicted only", "budget"))

    @pytest.mark.parametrize(("name", "starts"), [("a.png", b"\x89PNG"), ("a.pdf", b"%PDF"), ("a.SVG", b"<?xml")])
    def test_the_suffix_says_the_format(self, unfinished, tmp_path, name, starts):
        write_plot(unfinished, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(starts)

    def test_another_suffix_and_a_place_that_cannot_be_written_are_refused(self, unfinished, tmp_path):
        with pytest.raises(UsageError, match=r"--plot writes \.pdf, \.png, \.svg; got 'front\.gif'"):
            write_plot(unfinished, tmp_path / "front.gif")
        with pytest.raises(UsageError, match="No such file"):
            write_plot(unfinished, tmp_path / "nowhere" / "front.png")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install playwright)")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=found, args=["--no-sandbox"] if os.getuid() == 0 else [])
        yield opened
        opened.close()


@pytest.mark.slow
class TestInABrowser:
    @pytest.fixture
    def opened(self, browser):
        pages = []

        def open_page(run, width=1280, scheme="light"):
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            pages.append(page)
            page.set_default_timeout(120_000)  # milliseconds: a busy machine takes its time over 5 MB of script
            page.wrong = []
            page.on("console", lambda said: page.wrong.append(said.text) if said.type == "error" else None)
            page.on("pageerror", lambda error: page.wrong.append(str(error)))
            page.on("request", lambda asked: page.wrong.append(asked.url) if asked.url.startswith("http") else None)
            page.goto(write_report(run).as_uri())
            page.wait_for_function("[...document.querySelectorAll('.chart')].every((chart) => chart.children.length)")
            return page

        yield open_page
        for page in pages:
            page.close()

    @pytest.mark.parametrize("state", ["finished", "infeasible", "two_devices"])
    def test_it_draws_every_point_without_an_error_or_a_request_and_fits_a_phone(self, state, request, opened):
        run = request.getfixturevalue(state)
        page = opened(run, width=400)
        for place, figure in figures(find(run)).items():
            dots = [trace for trace in figure.data if trace.type == "scatter" and "markers" in trace.mode]
            assert page.locator(f"#{place} .scatterlayer .point").count() == sum(len(trace.x) for trace in dots)
        assert page.evaluate("document.documentElement.scrollWidth") == 400
        assert page.wrong == []

    def test_it_follows_the_theme_of_the_reader_charts_included(self, finished, opened):
        page = opened(finished, scheme="dark")
        seen = {}
        for scheme in ("dark", "light"):
            page.emulate_media(color_scheme=scheme)
            page.wait_for_timeout(200)
            seen[scheme] = page.evaluate(
                "[getComputedStyle(document.body).backgroundColor,"
                " getComputedStyle(document.querySelector('#pareto-0 .point')).stroke,"
                " getComputedStyle(document.querySelector('#pareto-0 .xtick text')).fill]"
            )
        assert all(light != dark for light, dark in zip(seen["light"], seen["dark"], strict=True))
        assert page.wrong == []

    def test_yaml_can_be_copied_and_no_button_sends_a_chart_anywhere(self, finished, opened):
        page = opened(finished)
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.locator("summary").first.click()
        page.locator(".yaml button").first.click()
        page.wait_for_function("document.querySelector('.yaml button').textContent === 'copied'")
        copied = page.evaluate("navigator.clipboard.readText()")
        assert copied.startswith(f"# {find(finished).front.members[0].name}\n")

        titles = page.eval_on_selector_all("#pareto-0 .modebar-btn", "all => all.map((button) => button.dataset.title)")
        assert titles
        assert not [title for title in titles if re.search("share|cloud|edit", title, re.IGNORECASE)]
