"""Searches that get SIGKILL at random moments and are resumed: do they come to what an undisturbed one comes to?

Several kinds of search take turns, each a run of its own that is killed TURN times: `evit-nas resume` goes on
until its record has grown to a random length, and then for a random moment more. Latencies follow from the MACs, and
scores from the architecture (in the first kind they are the real zero-cost proxies): trials, front and files can
be compared to the bit.
"""

from __future__ import annotations

import dataclasses
import os
import random
import re
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.reliability.sandbox import Fork, command, rehearsed
from evit_nas.accuracy import zero_cost
from evit_nas.files import Journal
from evit_nas.latency import DEVICES
from evit_nas.runs import Run
from evit_nas.searching import screening
from evit_nas.searching.record import journal_of
from tests.fakes import FakeDevice, fake_proxies
from tests.searches import known_device, label_table
from tests.test_resume import new_run, outcome

TURN = {"local": 10, "ray": 5}  # kills of one run
TRIALS = 24
AFTER_S = 0.4  # at most, between the line of the record that is waited for and the kill
END = 0.15  # share of the kills that come when everything is measured, while results are written
LIMIT_S = 300.0  # without an end an undisturbed search counts as stuck

REAL = "tpe, real proxies"
LOCAL: dict[str, dict[str, Any]] = {
    REAL: {},
    "two workers": {"workers": 2},
    "screened by prediction": {"accuracy": {"method": "table"}, "trials": 40, "budget_ms": 0.6},
    "nsga2, journal file": {"storage": "studies.log", "sampler": "nsga2", "objectives": ("score", "latency", "params")},
    "p90, in rounds of eight": {"budget_stat": "p90", "sampler": "random", "together": 8},
}
TURNS = [*LOCAL, *list(LOCAL)[2:], "nsga2, journal file", "p90, in rounds of eight"]  # the first two take minutes
RAY: dict[str, dict[str, Any]] = {"ray, two at a time": {"engine": "ray", "cluster": {"concurrent": 2}}}


@dataclasses.dataclass
class Killed:
    """What became of one run."""

    kills: int
    while_writing: int
    """Of them, when everything had been measured."""
    lost: int
    repeated: int
    stuck: int
    same_trials: bool
    same_front: bool
    same_files: bool
    left: list[str]
    """Scratch files in the run folder, and processes."""
    seconds: float


def run(folder: Path, count: int, engine: str, seed: int, done: Journal) -> bool:
    """Prints a line for each run; says whether all accounts balance."""
    DEVICES["fake"], real = FakeDevice, zero_cost.score_all
    zero_cost.score_all = fake_proxies
    screening.CHILDREN, screening.GENERATIONS = 60, 2  # it is proposed as carefully as need be here
    label_table(folder / "table.json")
    rehearsed(partial(_search, _begun(folder / "first", {"trials": 8}, folder)), folder, LIMIT_S)
    kinds, names = (RAY, list(RAY)) if engine == "ray" else (LOCAL, TURNS)
    good, sums = True, Counter[str]()
    numbers = ["kills", "while_writing", "lost", "repeated", "stuck"]
    print(f"{'search':24}" + "".join(f"{name.replace('_', ' '):>14}" for name in numbers), end="")
    print(f"{'trials':>9}{'front':>9}{'files':>9}{'left':>6}{'s':>6}")
    rows = {line["turn"]: line["row"] for line in done.read()}
    with tempfile.TemporaryDirectory(prefix="r-") as short:  # Ray's sockets lie in it
        os.environ["TMPDIR"] = tempfile.tempdir = short
        for turn in range(-(-count // TURN[engine])):
            name = names[turn % len(names)]
            kills = min(TURN[engine], count - turn * TURN[engine])
            if turn not in rows:
                rng = random.Random(f"{seed} {turn}")
                zero_cost.score_all = real if name == REAL else fake_proxies
                found = _killed(folder / f"{turn}", kinds[name], kills, rng, folder / "table.json")
                rows[turn] = dataclasses.asdict(found)
                done.append({"turn": turn, "row": rows[turn]})
            row = rows[turn]
            same = [("equal" if row[f"same_{what}"] else "DIFFER") for what in ("trials", "front", "files")]
            print(f"{name:24}" + "".join(f"{row[number]:14}" for number in numbers), end="")
            print("".join(f"{word:>9}" for word in same) + f"{len(row['left']):6}{row['seconds']:6.0f}", flush=True)
            for what in row["left"]:
                print(f"  left: {what}")
            sums.update({number: row[number] for number in numbers})
            good = good and "DIFFER" not in same and not row["left"]
    print(f"{'all':24}" + "".join(f"{sums[number]:14}" for number in numbers))
    return good and not any(sums[number] for number in numbers[2:])


def _killed(folder: Path, wish: dict[str, Any], kills: int, rng: random.Random, table: Path) -> Killed:
    wish = {"trials": TRIALS} | wish
    whole = _begun(folder / "whole", {k: v for k, v in wish.items() if k not in ("engine", "cluster")}, table)
    ended = Fork(partial(_search, whole), folder / "log").wait(LIMIT_S)
    assert ended.code == 0, ended.text
    os.chdir(whole)
    expected = outcome(Run.open(Path()))
    subject = _begun(folder / "subject", wish, table)
    total = len(expected.measured)
    targets = sorted(total if rng.random() < END else rng.randrange(total) for _ in range(kills))
    start, killed, while_writing, groups = time.monotonic(), 0, 0, []
    for target in targets:
        moment_s, process = rng.uniform(0, AFTER_S), Fork(partial(_search, subject), folder / "log")
        while _lines(subject) < target and process.poll() is None:
            time.sleep(0.002)
        time.sleep(moment_s)
        if process.poll() is None:
            process.kill()
            killed += 1
            while_writing += _lines(subject) >= total
        groups.append(process.pid)
    ended = Fork(partial(_search, subject), folder / "log").wait(LIMIT_S)
    seconds = time.monotonic() - start
    if ended.code != 0:
        print(ended.text)
    os.chdir(subject)
    found = outcome(Run.open(Path()))
    keys = [trial[-1]["key"] for trial in found.trials if "repeat_of" not in trial[-1]]
    return Killed(
        kills=killed,
        while_writing=while_writing,
        lost=sum(trial not in found.trials for trial in expected.trials),
        repeated=len(found.measured) - len(set(found.measured)) + len(keys) - len(set(keys)),
        stuck=sum(not trial[1].is_finished() for trial in found.trials) + (ended.code != 0),
        same_trials=found.trials == expected.trials,
        same_front=found.front == expected.front,
        same_files=_files(subject) == _files(whole),
        left=[*_scratch(subject), *_alive(groups)],
        seconds=seconds,
    )


def _begun(folder: Path, wish: dict[str, Any], table: Path) -> Path:
    """A run that has not begun yet, and a cache folder beside it."""
    accuracy = {"accuracy": wish["accuracy"] | {"table": str(table)}} if "accuracy" in wish else {}
    (folder / "run").mkdir(parents=True)
    new_run(folder / "run", **(wish | accuracy))
    return folder / "run"


def _search(run: Path) -> int:
    os.environ["XDG_CACHE_HOME"] = str(run.parent / "cache")
    if not (run.parent / "cache").exists() and Run.open(run).settings.accuracy.method == "table":
        known_device()
    os.chdir(run)  # the journal's path is a relative one
    return command("resume", ".")


def _lines(run: Path) -> int:
    path = journal_of(Run.open(run)).path
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _files(run: Path) -> dict[str, bytes]:
    """What a search writes for people, but for the page, which tells the time."""
    return {str(p.relative_to(run)): p.read_bytes() for p in [*run.glob("front/*"), *run.glob("front.csv")]}


def _scratch(run: Path) -> list[str]:
    """Files that a killed process had begun to write."""
    return [str(path.relative_to(run)) for path in run.rglob(".*") if re.fullmatch(r"\..+\.\d+", path.name)]


def _alive(groups: list[int], patience_s: float = 90.0) -> list[str]:
    """Processes of the killed ones' groups that are still there; Ray's agents take a minute to go."""
    deadline = time.monotonic() + patience_s
    while True:
        found = []
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                pid, rest = status.read_text().split(" ", 1)
                group = int(rest.rpartition(")")[2].split()[2])
                if group in groups:
                    found.append(f"process {pid} {(status.parent / 'cmdline').read_bytes()[:80]!r}")
            except (OSError, ValueError, IndexError):
                continue
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.5)
