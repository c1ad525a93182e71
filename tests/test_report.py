"""The report of real searches on fake devices: what it says, what it never says, and how it looks in a browser."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from functools import cache
from html import unescape
from itertools import pairwise

import pytest
from typer.main import get_command

from evit_nas.accuracy import scorecard, zero_cost
from evit_nas.accuracy.imagenet import imagenet_card
from evit_nas.accuracy.learned import LearnedAccuracy
from evit_nas.accuracy.scorecard import score_card
from evit_nas.accuracy.table import SHIPPED_TABLE, LabelTable
from evit_nas.arch import PRESETS, ArchConfig
from evit_nas.cli import app
from evit_nas.cli.app import given
from evit_nas.config import SearchSettings
from evit_nas.errors import Infeasible, UsageError
from evit_nas.latency import DEVICES, memory
from evit_nas.latency.predictor import compare
from evit_nas.latency.references import PUBLISHED_TOP1, REFERENCES, MeasuredReference
from evit_nas.lookup import find_arch
from evit_nas.published import IMAGENET_1K, TOP1
from evit_nas.regime import IMAGENET, Regime
from evit_nas.report.figures import CHOICES, figures, pareto, staircase
from evit_nas.report.page import EVIDENCE, write_report
from evit_nas.report.plot import write_plot
from evit_nas.report.repeat import repeat
from evit_nas.runs import Run
from evit_nas.searching import findings
from evit_nas.searching import score_card as cards
from evit_nas.searching.findings import Findings, find, sketch
from evit_nas.searching.front import Candidate, score_text
from evit_nas.searching.judges import JUDGES
from evit_nas.searching.record import give_up, load_front, readmit
from evit_nas.searching.replay import replay
from evit_nas.searching.storage import open_study
from evit_nas.searching.study import Search
from evit_nas.space import SearchSpace
from evit_nas.words import settings_from
from tests.fakes import FakeDevice, Powered, fake_proxies, latency_of
from tests.networks import tiny_arch
from tests.searches import Silent

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
                space_name="x",
                space=SearchSpace.load(space) if isinstance(space, str) else space,
                targets=targets,
                trials=trials,
                pool=5,
                **more,
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


@cache
def found_in(run: Run) -> Findings:
    """For tests that change nothing of the run."""
    return find(run)


def series(run: Run, place="pareto-0") -> dict:
    """What stands in a chart, by its name in the legend."""
    return {one.name: one for one in figures(found_in(run))[place].series if one.name}


def xs(one) -> list[float]:
    return [point.x for point in one.points]


def chart(page: str, place="pareto-0") -> str:
    return re.search(rf'<figure class="chart" id="{place}">.*?</figure>', page, re.DOTALL)[0]


def commands(page: str) -> list[str]:
    return [
        unescape(re.sub("<[^>]+>", "", one)) for one in re.findall(r'<div class="command"><code>(.*?)</code>', page)
    ]


def settings_of(line: str) -> SearchSettings:
    """The settings of the search that a command line starts."""
    program, verb, *words = shlex.split(line)
    assert (program, verb) == ("evit-nas", "search")
    return settings_from(**given(get_command(app).commands["search"].make_context("search", words)))


def shown_rows(page: str) -> list[str]:
    """The networks in the table of the front, from above."""
    table = re.search(r'<table class="front.*?</table>', page, re.DOTALL)[0]
    return re.findall(r'<tbody class="[^"]*" id="([^"]*)"', table)


def without_scripts(page: str) -> str:
    return re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)


def text(page: str) -> str:
    """What a reader sees, in one line."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", without_scripts(page))).split())


def test_the_first_lines_say_what_was_searched_and_by_what_score(finished):
    found, shown = found_in(finished), text(page_of(finished))
    assert f"{len(found.front.members)} networks within 1.2 ms on fake" in shown
    assert (
        "budget 1.2 ms for the median of one inference on fake, 1 thread, batch 1, fp32 (imaginary, none 1.0)" in shown
    )
    assert (
        f"x, 64 px, 10 classes: {TRIALS} networks evaluated, {len(found.measured)} measured, "
        f"{len(found.predicted)} only predicted" in shown
    )
    assert f"score {found.front.origin}" in shown
    assert "certified every member" in shown


def test_the_first_card_is_the_best_beside_the_papers_nearest_network_with_what_to_do_next(finished):
    found, page = found_in(finished), page_of(finished)
    best = max(found.front.members, key=lambda member: member.score)
    own = best.latency.median_ms
    nearest = min(found.front.references, key=lambda one: abs(one.latency.median_ms / own - 1))
    assert re.search(
        rf"best {best.name} {own:.2f} ms ± 1.0 % score {best.score:.3f} .*? "
        rf"{nearest.name}, the paper’s nearest in latency: {nearest.latency.median_ms:.2f} ms ± 1.0 %, "
        rf"score {nearest.score:.3f} train evit-nas train {finished.path}/{best.name} --data PATH",
        text(page),
    )
    assert f"evit-nas train {finished.path} --top 3 --baseline nearest --data PATH" in commands(page)
    assert commands(page)[:2] == [
        f"evit-nas train {finished.path}/{best.name} --data PATH",
        f"evit-nas export {finished.path}/{best.name} --to onnx",
    ]


def test_every_member_and_every_network_of_the_paper_is_in_sight_fastest_first(finished):
    front, page = found_in(finished).front, page_of(finished)
    rows = sorted([*front.members, *front.references], key=lambda one: one.latency.median_ms)
    assert shown_rows(page) == [one.name for one in rows]
    assert not re.search(r"max-height|overflow-y", page)
    best = max(front.members, key=lambda member: member.score)
    assert f'<tbody class="member best" id="{best.name}">' in page
    for one in front.references:
        assert f'<tbody class="reference" id="{one.name}">' in page
        assert f"{one.name} of the paper {one.latency.median_ms:.2f}" in text(page)


@pytest.mark.parametrize(
    "asked",
    [{"objectives": ("score", "latency", "memory", "energy")}, {"limits": {"memory_mb": 1000.0, "energy_mj": 100.0}}],
    ids=["objectives", "limits"],
)
def test_what_the_device_was_asked_for_besides_is_a_column_of_the_front(searched, asked, monkeypatch):
    monkeypatch.setitem(DEVICES, "fake", Powered)
    monkeypatch.setattr(memory, "peak_memory_mb", lambda arch, conditions: 64.4)
    run = searched(trials=6, **asked)
    members, page = found_in(run).front.members, text(page_of(run))
    assert members
    for one in members:
        assert f"{one.macs / 1e6:.2f} M 64 {one.macs / 1e6:.2f} " in page
    assert "MACs MB mJ" in page
    assert page.count(" – – ") == len(found_in(run).front.references)  # asked of what the search found alone


def test_each_member_has_commands_that_the_command_line_takes(searched):
    run = searched(name="it's mine", trials=6, accuracy={"data": "my photos"})
    for member in found_in(run).front.members:
        for line in commands(page_of(run)):
            if member.name in line:
                verb, named, *rest = shlex.split(line)[1:]
                assert find_arch(named) == member.arch
                assert (verb, rest) in [("train", ["--data", "my photos"]), ("export", ["--to", "onnx"])]
                get_command(app).commands[verb].make_context(verb, [named, *rest])
    assert all(one.name in " ".join(commands(page_of(run))) for one in found_in(run).front.members)


def test_there_is_no_command_for_a_member_before_its_file_is_there(unfinished):
    assert found_in(unfinished).front.members
    assert not [line for line in commands(page_of(unfinished)) if "train" in line or "export" in line]


def test_every_network_is_one_point_and_what_was_only_predicted_is_a_kind_of_its_own(finished):
    found, drawn = found_in(finished), series(finished)
    assert found.predicted  # else there is nothing to keep apart
    assert xs(drawn["predicted only"]) == [one.predicted_ms[0] for one in found.predicted]
    assert drawn["predicted only"].symbol == "ring"
    measured = {candidate.arch.key: candidate for candidate in [*found.measured, *found.front.references]}
    assert not {one.arch.key for one in found.predicted} & set(measured)
    points = sum(len(drawn[name].points) for name in ("measured", "front", "the paper’s m0–m5"))
    assert points == len(measured)
    assert chart(page_of(finished)).count("<title>") == len(measured) + len(found.predicted)


def test_every_evaluated_network_is_counted_once(finished):
    with open_study(finished) as study:
        give_up(study, find(finished).front.members[0].arch.key, "took too long")
        found = find(finished)
        readmit(study, [*study.user_attrs["given up"]])
    assert found.given_up == 1
    assert len(found.measured) + len(found.predicted) + found.failed + found.given_up == found.front.done == TRIALS


def test_the_front_carries_its_error_bars(finished):
    front, drawn = found_in(finished).front.members, series(finished)["front"]
    assert xs(drawn) == [member.latency.median_ms for member in front]
    assert [point.y for point in drawn.points] == [member.score for member in front]
    for point in drawn.points:
        assert point.x_bar == pytest.approx((point.x * 0.99, point.x * 1.01))
    assert sketch(front[0].arch) in drawn.points[0].tip


def test_a_point_of_the_front_leads_to_its_row(finished):
    members, rows = found_in(finished).front.members, shown_rows(page_of(finished))
    assert [point.to for point in series(finished)["front"].points] == [member.name for member in members]
    assert {f'href="#{member.name}"' for member in members} <= set(re.findall(r'href="#[^"]*"', page_of(finished)))
    assert {member.name for member in members} <= set(rows)


def test_scores_carry_their_intervals_where_those_are_known(finished):
    found = found_in(finished)
    assert not any(point.y_bar for one in pareto(found, 0).series for point in one.points)
    members = [replace(m, interval=(m.score - 0.2, m.score + 0.1)) for m in found.front.members]
    drawn = pareto(replace(found, front=replace(found.front, members=members)), 0)
    bars = [point.y_bar for one in drawn.series if one.name == "front" for point in one.points]
    assert bars == [member.interval for member in members]


def test_the_papers_networks_and_what_to_look_at_first_are_labelled(finished):
    drawn = series(finished)
    assert [point.label for point in drawn["the paper’s m0–m5"].points] == ["m0", "m1", "m2", "m3", "m4", "m5"]
    assert ", ".join(filter(None, (point.label for point in drawn["front"].points))).split(", ") == [
        *("fastest", "knee", "best"),
    ]


def test_a_staircase_leaves_out_what_is_beaten_on_that_device():
    def member(score, *ms):
        return Candidate("", tiny_arch(), score, tuple(latency_of(one) for one in ms), certified=True, trial=0)

    members = [member(-1.0, 3.0, 1.0), member(-2.0, 1.0, 4.0), member(-1.5, 2.0, 0.5)]
    assert staircase(members, 0, "median") == ([1.0, 2.0, 3.0], [-2.0, -1.5, -1.0])
    assert staircase(members, 1, "median") == ([0.5, 1.0], [-1.5, -1.0])
    assert staircase([], 0, "median") == ([], [])


def test_convergence_is_the_hypervolume_of_what_was_measured_within_the_budget(finished):
    found = found_in(finished)
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
    found, page = found_in(finished), page_of(finished)
    one = found.forecasts[0]
    assert one.names
    assert f"fake: {compare(one.predicted_ms, one.measured_ms)}." in text(page)
    drawn = figures(found)["forecast-0"].series[1]
    assert xs(drawn) == one.measured_ms
    assert [point.y for point in drawn.points] == one.predicted_ms


def test_importances_need_networks_enough(finished, unfinished):
    assert sum(found_in(finished).importance.values()) == pytest.approx(1)
    assert len(figures(found_in(finished))["importance"].series[0].boxes) == 12
    assert found_in(unfinished).importance == {}
    assert "too few networks within the budget to say which parameters matter" in text(page_of(unfinished))


def test_the_choices_that_tell_the_members_apart_are_followed_along_the_front(finished):
    found = found_in(finished)
    drawn = [one for place, one in figures(found).items() if place.startswith("choice-")]
    chosen = [found.params[member.arch.key] for member in found.front.members]
    assert len(drawn) == CHOICES
    for one in drawn:
        values = [params[one.y.title] for params in chosen]
        assert len(set(values)) > 1
        assert [point.x for point in one.series[0].points] == [m.latency.median_ms for m in found.front.members]
        assert [point.tip.splitlines()[0] for point in one.series[0].points] == [m.name for m in found.front.members]
        assert len({point.y for point in one.series[0].points}) == len(set(values))


def test_each_member_has_its_yaml_which_loads_to_the_same_architecture(finished, tmp_path):
    listed = re.findall(r"<pre>(.*?)</pre>", page_of(finished), re.DOTALL)
    for member, yaml in zip(found_in(finished).front.members, listed, strict=True):
        (tmp_path / "arch.yaml").write_text(unescape(yaml))
        assert ArchConfig.load(tmp_path / "arch.yaml") == member.arch
        assert f"# {member.name}\n" in yaml


def test_what_a_user_wrote_is_shown_and_never_run(searched):
    page = page_of(searched(name=NASTY.replace("/", ""), command=f"evit-nas search --out '{NASTY}'", trials=6))
    assert "<script>alert" not in page
    assert f"evit-nas search --out '{NASTY}'" in text(page)


def test_a_device_may_be_called_anything(finished, monkeypatch):
    found = found_in(finished)
    target = found.settings.targets[0]
    named = target.model_copy(update={"conditions": target.conditions.model_copy(update={"device": NASTY})})
    odd = replace(found, settings=found.settings.model_copy(update={"targets": (named,)}))
    monkeypatch.setattr("evit_nas.report.page.find", lambda run: odd)
    page = write_report(finished).read_text()
    assert "<script>alert" not in page
    assert "median latency on &lt;script&gt;" in page


def test_the_page_loads_nothing_and_is_small(finished):
    page = page_of(finished)
    assert "default-src 'none'" in page
    assert "unsafe-eval" not in page
    assert len(page.encode()) < 300_000
    assert not re.search(r'https?://|\bsrc=|href="[^#]|@import|url\(', page)


def test_the_same_record_gives_the_same_bytes(finished):
    assert page_of(finished) == write_report(Run.open(finished.path)).read_text()


def test_a_search_that_goes_on_says_how_far_it_is_and_what_is_not_certified(unfinished):
    page, front = page_of(unfinished), found_in(unfinished).front.members
    assert "The search is at 9 of 40 networks" in text(page)
    assert f"evit-nas resume {unfinished.path}" in commands(page)
    assert "certified no member so far" in text(page)
    assert len(series(unfinished)["front, not certified"].points) == len(front) > 0
    assert text(page).count("not certified") >= len(front)


def test_a_search_that_ended_before_its_total_says_why(finished, monkeypatch):
    found = found_in(finished)
    early = replace(found, front=replace(found.front, total=999, ended="the time is over"))
    monkeypatch.setattr("evit_nas.report.page.find", lambda run: early)
    page = text(write_report(finished).read_text())
    assert f"The search ended after {TRIALS} of 999 networks: the time is over." in page
    assert "evit-nas resume" not in page


def test_a_front_with_a_noisy_figure_is_not_called_certified(finished, monkeypatch):
    found = found_in(finished)
    first, *others = found.front.members
    noisy = replace(first, latencies=(first.latency.model_copy(update={"noise": "others were at work"}),))
    unsure = replace(found, front=replace(found.front, members=[noisy, *others]))
    monkeypatch.setattr("evit_nas.report.page.find", lambda run: unsure)
    page = text(write_report(finished).read_text())
    assert "certified measured again after the search, strictly, but 1 of the members on a noisy machine" in page
    assert "every member: measured again" not in page


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
    page, found = page_of(infeasible), found_in(infeasible)
    nearest_ms = min(candidate.latency.median_ms for candidate in found.measured)
    assert "Nothing within 0.33 ms on fake" in text(page)
    assert f"The fastest one measured takes {nearest_ms:.2f} ms ± 1.0 % on fake" in text(page)
    assert set(figures(found)) == {"pareto-0"}
    assert len(series(infeasible)["measured"].points) == 8
    assert "Every member" not in text(page)
    wider = next(line for line in commands(page) if "--budget" in line)
    assert settings_of(wider).targets[0].budget_ms > nearest_ms


def test_a_front_of_one_member_is_best_knee_and_fastest(unfinished, monkeypatch):
    found = found_in(unfinished)
    one = replace(found, front=replace(found.front, members=found.front.members[:1]))
    monkeypatch.setattr("evit_nas.report.page.find", lambda run: one)
    page = write_report(unfinished).read_text()
    assert "1 network within 1.2 ms" in text(page)
    assert "best, knee, fastest" in text(page)
    assert not [place for place in figures(one) if place.startswith("choice-")]


def test_several_devices_have_a_chart_and_columns_each(two_devices):
    page, front = page_of(two_devices), found_in(two_devices).front.members
    assert "within 1.2 ms on fake and 1.8 ms on fake:2" in text(page)
    assert "fake ms spread typical ms fake:2 ms spread typical ms score" in text(page)
    for index, budget_ms in enumerate((1.2, 1.8)):
        assert xs(series(two_devices, f"pareto-{index}")["front"]) == [m.latencies[index].median_ms for m in front]
        assert [rule.x for rule in figures(found_in(two_devices))[f"pareto-{index}"].rules] == [budget_ms]


def test_a_budget_on_the_90th_percentile_is_drawn_on_it(tail):
    page, front = page_of(tail), found_in(tail).front.members
    assert "within 1.2 ms (p90) on fake" in text(page)
    assert xs(series(tail)["front"]) == [member.latency.p90_ms for member in front]
    best = max(front, key=lambda member: member.score)
    assert re.search(rf"best {best.name} {best.latency.p90_ms:.2f} ms p90 ± 1.0 %", text(page))  # as the budget counts
    assert "budget 1.2 ms for the p90 of one inference" in text(page)
    assert "Nothing was predicted and then measured" in text(page)


def test_what_the_score_is_worth_is_said_with_the_kind_of_evidence(finished):
    assert f"The score is {found_in(finished).front.origin}. {EVIDENCE['zero-cost']}" in text(page_of(finished))
    assert set(JUDGES) == set(EVIDENCE)
    assert "tau at equal latency" not in page_of(finished)  # of this space no networks were trained


def test_a_score_learned_from_trained_networks_comes_with_its_card(searched, monkeypatch):
    run = searched(trials=6, accuracy={"method": "table", "regime": Regime(images=9000, classes=12)})
    judged_by = LabelTable.load(SHIPPED_TABLE)
    small = judged_by.model_copy(update={"networks": judged_by.networks[:24]})
    monkeypatch.setattr(cards.LabelTable, "load", lambda name: small)
    (run.path / "card.json").unlink()  # as of a search that goes on, or one of an earlier version
    page = write_report(run).read_text()
    card = score_card(small, labels=(), only="predictor", blind=True)
    assert card.rows[-1].score == "predictor, 0 labels"  # the search has none of its data
    for row in card.rows:
        assert f"{row.score} {row.iso}" in text(page)
    assert f"{card.pairs} pairs of 24 EfficientViTs trained on fashion-mnist" in text(page)
    assert [row.kind for row in card.rows] == ["size"] * 4 + ["predictor"]
    monkeypatch.setattr(scorecard, "score_card", None)  # it is judged once
    assert write_report(run).read_text() == page


def test_the_search_judges_its_score_and_the_report_only_shows_that(searched, monkeypatch):
    run = searched(trials=6, accuracy={"method": "table", "regime": Regime(images=9000, classes=12)})
    found = cards.card_of(run)
    monkeypatch.setattr(cards, "make_card", None)
    page = text(write_report(run).read_text())
    assert found.rows
    assert found.judged in page
    assert all(" ".join(row.values()) in page for row in found.rows)


@pytest.mark.parametrize("damage", ["", "[]", '{"of": "an earlier version", "rows": [], "judged": ""}'])
def test_a_card_that_cannot_be_read_is_made_anew(for_imagenet, damage):
    found, file = cards.card_of(for_imagenet), for_imagenet.path / "card.json"
    file.write_text(damage)
    assert cards.card_of(for_imagenet) == found
    assert cards.card_of(Run.open(for_imagenet.path)) == found


@pytest.mark.parametrize(("images", "few"), [(600, True), (9000, False)])
def test_few_photographs_are_said_to_be_few(finished, images, few, monkeypatch):
    accuracy = finished.settings.accuracy.model_copy(
        update={"method": "table", "regime": Regime(images=images, classes=10)}
    )
    changed = finished.settings.model_copy(update={"accuracy": accuracy})
    monkeypatch.setattr(finished, "settings", changed)
    monkeypatch.setattr("evit_nas.report.page.card_of", lambda run: cards.NO_CARD)  # the run has no such one
    assert (f"{images:,} images are few to learn from scratch" in text(write_report(finished).read_text())) is few


@pytest.fixture(scope="module")
def for_imagenet(searched) -> Run:
    """A run whose score is for ImageNet, as that of a search is whose user says nothing else."""
    accuracy = {"method": "table", "regime": IMAGENET}
    return searched(space="efficientvit-224", budgets=(300,), trials=12, accuracy=accuracy)


def test_a_score_for_imagenet_is_judged_by_what_is_published(for_imagenet):
    page = text(page_of(for_imagenet))
    assert (for_imagenet.path / "card.json").exists()
    card = imagenet_card()
    for one in card.presets:
        assert f"{one.name} {one.published:.1f} % {one.predicted:.1f} % ({one.low:.1f} to {one.high:.1f})" in page
    assert f"with an error of {card.rmse:.1f} points" in page


def test_on_imagenet_published_and_expected_accuracies_stand_on_one_scale(for_imagenet):
    page, found = text(page_of(for_imagenet)), found_in(for_imagenet)
    papers = {one.name: one for one in found.front.references}
    assert set(papers) == set(PRESETS)
    for name, one in papers.items():
        assert one.score == pytest.approx(TOP1[IMAGENET_1K][name], abs=0.3)
        within = [m for m in found.front.members if m.latency.median_ms <= one.latency.median_ms]
        best = max(within, key=lambda member: member.score, default=None)
        ours = f"{best.name} {score_text(best)}" if best else "– –"
        assert (
            f"EfficientViT-{name.upper()} {one.latency.median_ms:.2f} ± 1.0 % {PUBLISHED_TOP1[name]:.1f} % {ours}"
            in page
        )


def published_figures(page: str) -> list[str]:
    """What is published of networks on ImageNet and stands anywhere on the page."""
    known = [*PUBLISHED_TOP1.values(), *(reference.published_top1 for reference in REFERENCES)]
    return [
        figure for figure in {f"{top1:.1f} %" for top1 in known} if re.search(rf"(?<![\d.]){figure}", unescape(page))
    ]


def test_no_published_accuracy_stands_beside_a_score_of_something_else(searched, for_imagenet, monkeypatch):
    known = [MeasuredReference(reference, latency_of(5.0)) for reference in REFERENCES]
    monkeypatch.setattr(findings, "known_references", lambda context: known)
    others = (
        {"method": "zero-cost"},
        {"method": "table", "regime": Regime(images=5000, classes=10)},
        {"method": "table", "table": SHIPPED_TABLE},
    )
    for accuracy in others:  # networks as large as ImageNet's, with as many classes
        run = searched(space="efficientvit-224", budgets=(200,), trials=6, accuracy=accuracy)
        page = write_report(run).read_text()
        assert REFERENCES[3].label in page  # whose latency is worth knowing
        assert published_figures(page) == []
        assert "this run’s best in that time" not in page
    assert len(published_figures(write_report(for_imagenet).read_text())) > 15


def test_an_adapted_network_of_the_paper_has_no_published_accuracy(searched):
    """On images of another size m5 is not what its authors trained, even where the score is for ImageNet."""
    space = SearchSpace.load("efficientvit-224").model_copy(update={"image_size": 160})
    run = searched(space=space, budgets=(300,), trials=6, accuracy={"method": "table", "regime": IMAGENET})
    page = write_report(run).read_text()
    assert "published on ImageNet" not in page
    assert "EfficientViT-M5" not in page


def test_the_score_of_a_network_of_the_paper_is_named_beside_what_is_published(for_imagenet):
    for point in series(for_imagenet)["the paper’s m0–m5"].points:
        assert f"published on ImageNet: {PUBLISHED_TOP1[point.label]:.1f} %" in point.tip


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
    assert load_front(for_imagenet) == found_in(for_imagenet).front


def test_a_zero_cost_score_is_judged_where_networks_of_its_space_were_trained(searched):
    run = searched(space="efficientvit-224", budgets=(200,), trials=6)
    assert re.search(r"zero-cost aggregate -?0\.\d\d", text(write_report(run).read_text()))


def test_popular_networks_stand_beside_with_their_latency_and_in_no_chart(finished, monkeypatch):
    reference, without, front = REFERENCES[3], page_of(finished), found_in(finished).front.members
    assert "evit-nas measure --references --device fake" in commands(without)
    ours = front[len(front) // 2]  # faster members score less
    known = MeasuredReference(reference, latency_of(ours.latency.median_ms))
    monkeypatch.setattr(findings, "known_references", lambda context: [known])
    page = write_report(finished).read_text()
    assert f"{reference.label} {ours.latency.median_ms:.2f} ± 1.0 %" in text(page)
    assert chart(page) == chart(without)


ASKED = {
    "table": {},
    "table for other images": {"data": "digits"},
    "a table of one's own": {"table": "my tables/flowers.json"},
    "predictor": {"accuracy": "predictor", "data": "a b", "labels": 12, "labels_from": ["runs/x", "runs/y z"]},
    "supernet": {"supernet": "/super nets/a"},
    "zero-cost": {"accuracy": "zero-cost", "space": "efficientvit-tiny", "image_size": 96},
    "short on Ray": {
        "accuracy": "short",
        "data": "digits",
        "scheduler": "asha",
        "engine": "ray",
        "address": "auto",
        "concurrent": 9,
        "together": 9,
        "storage_path": "/shared",
    },
    "two devices": {
        "device": ["cpu:2", "cpu-int8"],
        "budget": "cpu:2=5ms,cpu-int8=2ms",
        "budget_stat": "p90",
        "batch": 4,
        "session": ["session.x=1"],
        "objective": ["score", "latency", "params"],
    },
    "limits": {"max_params": "6M", "min_score": 70, "time": "10m", "patience": 50, "storage": "studies.log"},
}


@pytest.mark.parametrize("command", ["evit-nas search --out r", "evit_nas.search(budget='5ms', space=PosixPath('s'))"])
@pytest.mark.parametrize("words", ASKED.values(), ids=ASKED)
def test_the_command_that_repeats_a_run_has_its_settings(words, command, finished, tmp_path):
    settings = settings_from(**{"budget": "5ms", "workers": 3, "seed": 7} | words)
    run = Run.create(tmp_path / "my runs" / "r", settings, {}, command)
    found = found_in(finished)
    again = repeat(run, replace(found, settings=settings, front=replace(found.front, members=[])))
    assert again.replay == ""
    assert settings_of(again.search) == settings
    assert command in again.facts.values()
    accuracy = settings.accuracy
    sources = (accuracy.data, accuracy.table, accuracy.supernet, *accuracy.labels_from)
    said = " ".join([*again.notes, *again.facts.values()])
    assert all(taken in said for taken in sources if taken)


def test_what_was_called_in_python_is_not_said_to_be_typed(searched):
    assert "called in Python evit_nas.search(budget='2ms')" in text(
        page_of(searched(trials=6, command="evit_nas.search(budget='2ms')"))
    )


def test_the_best_member_is_evaluated_again_by_the_command_for_it(finished):
    best = max(found_in(finished).front.members, key=lambda member: member.score)
    line = next(line for line in commands(page_of(finished)) if " replay " in line)
    _, _, path, number = shlex.split(line)
    again = replay(Run.open(type(finished.path)(path)), int(number), Silent())
    assert (again.arch, again.holds) == (best.arch, True)


def test_a_run_of_another_version_says_that_its_scores_may_be_others(finished, monkeypatch):
    assert "whose scores may be others" not in text(page_of(finished))
    monkeypatch.setattr("evit_nas.report.repeat.__version__", "9.0")
    page = text(write_report(finished).read_text())
    assert f"The run is of version {finished.record['evit_nas']}, this page of 9.0" in page


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
        for target in found_in(run).settings.targets:
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

        def open_page(run, width=1280, scheme="light", **how):
            page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme, **how)
            pages.append(page)
            page.wrong = []
            page.on("console", lambda said: page.wrong.append(said.text) if said.type == "error" else None)
            page.on("pageerror", lambda error: page.wrong.append(str(error)))
            page.on("request", lambda asked: page.wrong.append(asked.url) if asked.url.startswith("http") else None)
            page.goto(write_report(run).as_uri())
            return page

        yield open_page
        for page in pages:
            page.close()

    @pytest.mark.parametrize("width", [1280, 800, 400])
    @pytest.mark.parametrize("state", ["finished", "infeasible", "two_devices", "for_imagenet"])
    def test_it_fits_any_width_without_an_error_or_a_request(self, state, width, request, opened):
        page = opened(request.getfixturevalue(state), width=width)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        beyond = "mark => mark.getBoundingClientRect().right > innerWidth || mark.getBoundingClientRect().left < 0"
        assert (
            page.evaluate(f"[...document.querySelectorAll('.canvas *, th, td, button')].filter({beyond}).length") == 0
        )
        assert page.wrong == []

    def test_what_to_know_first_is_on_the_first_screen(self, for_imagenet, opened):
        page = opened(for_imagenet)
        for found in ("h1", ".asked", ".picks section:first-child .score", ".picks section:first-child .command"):
            box = page.locator(found).first.bounding_box()
            assert box["y"] + box["height"] < 800

    def test_it_follows_the_theme_of_the_reader_charts_included(self, finished, opened):
        page = opened(finished, scheme="dark")
        seen = {}
        for scheme in ("dark", "light"):
            page.emulate_media(color_scheme=scheme)
            seen[scheme] = page.evaluate(
                "[getComputedStyle(document.body).backgroundColor,"
                " getComputedStyle(document.querySelector('#pareto-0 .dot')).fill,"
                " getComputedStyle(document.querySelector('#pareto-0 .tick')).fill]"
            )
        assert all(light != dark for light, dark in zip(seen["light"], seen["dark"], strict=True))
        assert page.wrong == []

    def test_a_point_says_what_it_is_and_a_kind_of_them_can_be_hidden(self, finished, opened):
        page, member = opened(finished), found_in(finished).front.members[0]
        page.locator(f'#pareto-0 a[href="#{member.name}"] circle').hover()
        assert page.locator(".tip").inner_text().startswith(f"{member.name}, certified")
        assert page.locator("#pareto-0 title").count() == 0  # else the browser shows it once more
        cloud = page.locator("#pareto-0 g.s1 circle").first
        assert cloud.is_visible()
        page.locator("#pareto-0 .keys").get_by_text("measured", exact=True).click()
        assert not cloud.is_visible()

    @pytest.mark.parametrize("refused", [False, True])
    def test_a_command_is_copied_whatever_the_browser_allows(self, refused, finished, opened):
        page = opened(finished)
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.evaluate("window.kept = navigator.clipboard")
        if refused:  # as on a page that is not from a secure place
            page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
        page.locator(".picks button").first.click()
        page.wait_for_function("document.querySelector('.picks button').textContent === 'copied'")
        assert page.evaluate("kept.readText()") == commands(page_of(finished))[0]

    def test_yaml_is_copied_as_it_is(self, finished, opened):
        page = opened(finished)
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.locator("summary").first.click()
        page.locator("details[open] pre + button").click()
        page.wait_for_function("document.querySelector('details[open] pre + button').textContent === 'copied'")
        copied = page.evaluate("navigator.clipboard.readText()")
        assert copied.startswith(f"# {found_in(finished).front.members[0].name}\n")

    def test_without_scripts_all_of_it_is_there_and_no_dead_button(self, finished, opened):
        page = opened(finished, java_script_enabled=False)
        assert page.locator("button").count() == 0
        assert page.locator("#pareto-0 circle title").count() > TRIALS / 2
        page.locator(".command code").first.click()  # selects the whole command
        assert page.locator(".command code").first.evaluate("one => getComputedStyle(one).userSelect") == "all"
