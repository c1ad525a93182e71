"""Damaged files, each handed to a command that reads its kind: is the answer a sentence, in time, and nothing lost?

YAML files are damaged as tests/test_wrong_input.py does it, by their values and by their letters; all others are cut,
or bytes of them are changed, zeroed, repeated or left out. Every command runs in a process of its own, through the
entry point of the command line, with a device and proxies that answer at once; ONNX files are measured on the real one.

What is counted against a command: a traceback or an unexpected error; death by a signal; no end in time; a loss, which
is a file beside the damaged one that is gone or changed, a damaged file that was overwritten without a copy though the
command refused it, or an undamaged line of a journal that is gone. For resumed runs and trainings the truth is known:
"unnoticed" counts those that ended well with another front or other weights than without the damage.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import chdir, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks.reliability.sandbox import Ended, Fork, command, rehearsed
from evit_nas.accuracy import zero_cost
from evit_nas.arch import ArchConfig
from evit_nas.files import Journal
from evit_nas.latency import DEVICES
from evit_nas.network.onnx_graph import build_onnx
from evit_nas.runs import Run
from evit_nas.searching.record import load_front
from evit_nas.shipping.package import ship
from evit_nas.space import SearchSpace, space_path
from evit_nas.training.network import train
from evit_nas.training.recipe import RECIPES
from evit_nas.words import settings_from
from evit_nas.yamlio import to_yaml
from tests.fakes import FakeDevice, fake_proxies
from tests.networks import tiny_arch
from tests.searches import Died, label_table
from tests.test_resume import new_run, search
from tests.test_train import Stopped, Watch, begun
from tests.test_wrong_input import _mutated
from tests.trainings import FILES, FileDevice, finished, write_shades

LIMIT_S = 90.0  # on a machine that does other work; the longest undamaged command takes some ten seconds
FAULT = re.compile(r"Traceback \(most recent call last\)|unexpected \w+:|Segmentation fault|core dumped")
GROWS = (".jsonl", ".log")  # files that commands append to
REPLACED = re.compile(
    r"(^|/)(front/|front\.csv|report\.html|\.lock|study\.db|metrics\.jsonl|best\.safetensors|checkpoint\.pt)|\.torn$"
)


def flipped(content: bytes, rng: random.Random) -> bytes:
    """A file that is cut, or has bytes changed, zeroed, repeated or left out."""
    what, start = rng.randrange(6), rng.randrange(len(content))
    end = min(len(content), start + rng.choice((1, 16, 512, 4096)))
    if what == 0:
        return content[:start]
    if what == 1:
        return content[:start] + bytes(end - start) + content[end:]
    if what == 2:
        return content[:start] + content[end:]
    if what == 3:
        return content[:end] + content[start:]
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 5, 50))):
        data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
    return bytes(data)


def mutated(content: bytes, rng: random.Random) -> bytes:
    """A damaged YAML file."""
    return _mutated(content.decode(), rng)


def recipe(content: bytes, rng: random.Random) -> bytes:
    """One that asks for no long training."""
    while True:
        data = mutated(content, rng)
        with suppress(Exception):
            found = yaml.safe_load(data)
            settings = found.get("settings", found)
            if settings.get("recipe", settings).get("epochs", 300) > 5:
                continue
        return data


@dataclass(frozen=True)
class Kind:
    """One kind of file and what reads it."""

    name: str
    share: int
    """Of a thousand."""
    base: str
    """Folder of which each case gets a copy."""
    file: str
    """What is damaged in it."""
    commands: tuple[str, ...]
    """One of them is run, in the copy."""
    damage: Callable[[bytes, random.Random], bytes] = flipped
    truth: Callable[[Path], object] | None = None
    """What must come of the copy if the last of the commands succeeds."""


def front(folder: Path) -> object:
    """The front of the run in `folder`, without what the run is called."""
    found = load_front(Run.open(folder))
    return found.members, found.references, found.done


def weights(folder: Path) -> object:
    """The bytes of a finished training's weights."""
    return (folder / "model.safetensors").read_bytes()


TRAIN, RESUME = "--no-ship --workers 0", "train . --resume --no-ship --workers 0"
DRY = "--budget 1ms --device fake --dry-run"
EVALUATE, EXPORT = "eval . --data digits --workers 0", "export . --to onnx --out o.onnx"
READ = ("front .", "report .", "score arch.yaml --run .")
SPACES = ("space space.yaml", "space space.yaml --sample 2", f"search --space space.yaml {DRY}")
ARCHS = (
    "describe arch.yaml",
    "score arch.yaml",
    "measure arch.yaml --device fake",
    "export arch.yaml --to yaml --out o.yaml",
)
RUNS = ("front .", "config .", "report .", "runs ..", "front . --pick knee")
TABLES = (
    f"search --accuracy table --table table.json --space efficientvit-tiny {DRY}",
    "proxies bench --from-table table.json",
)

KINDS = (
    Kind("spaces, YAML", 150, "files", "space.yaml", SPACES, mutated),
    Kind("archs, YAML", 200, "files", "arch.yaml", (*ARCHS, "export arch.yaml --to onnx --out o.onnx"), mutated),
    Kind(
        "recipes, YAML",
        50,
        "files",
        "recipe.yaml",
        (f"train arch.yaml --data ../../../shades --recipe recipe.yaml {TRAIN}",),
        recipe,
    ),
    Kind(
        "settings, YAML",
        80,
        "files",
        "settings.yaml",
        ("config settings.yaml", f"search --config settings.yaml {DRY}"),
        mutated,
    ),
    Kind("runs: run.yaml", 150, "run", "run.yaml", RUNS, mutated),
    Kind("trainings: train.yaml", 20, "training", "train.yaml", (RESUME,), recipe),
    Kind("journals: measurements", 60, "half", "measurements.jsonl", (*READ, "resume .", "resume ."), truth=front),
    Kind("journals: studies.log", 50, "stored", "studies.log", (*READ, "resume .", "resume ."), truth=front),
    Kind("databases: study.db", 60, "half", "study.db", (*READ, "resume .", "resume ."), truth=front),
    Kind("tables of latencies", 20, "files", "table.jsonl", ("latency show --device fake --space efficientvit-tiny",)),
    Kind("tables of accuracies", 30, "files", "table.json", TABLES),
    Kind("checkpoints", 40, "training", "checkpoint.pt", (RESUME,), truth=weights),
    Kind("weights of a training", 15, "training", "best.safetensors", (RESUME,)),
    Kind("metrics of a training", 15, "training", "metrics.jsonl", (RESUME,), truth=weights),
    Kind("records: trained.json", 20, "finished", "trained.json", (EVALUATE, "describe .", EXPORT)),
    Kind("weights, safetensors", 20, "finished", "model.safetensors", (EVALUATE, EXPORT)),
    Kind("ONNX files, measured", 10, "files", "net.onnx", ("measure net.onnx", "profile net.onnx")),
    Kind(
        "ONNX files, evaluated",
        10,
        "shipped",
        "model.onnx",
        ("eval model.onnx --data digits --like . --workers 0", "verify ."),
    ),
)


def make(folder: Path) -> int:
    """Undamaged files of every kind in `folder`."""
    DEVICES["files"] = FileDevice
    files = folder / "files"
    files.mkdir()
    write_shades(folder / "shades")
    arch = tiny_arch().model_copy(update={"num_classes": 3})
    (files / "arch.yaml").write_text(arch.to_yaml("a network"))
    (files / "space.yaml").write_text(space_path("efficientvit-tiny").read_text())
    quick = RECIPES["tiny"] | {"epochs": 2, "warmup_epochs": 1, "batch_size": 24, "auto_augment": "rand-m3-inc1"}
    (files / "recipe.yaml").write_text(yaml.safe_dump(quick))
    settings = settings_from(
        budget="1ms", device="fake", space="efficientvit-tiny", accuracy="zero-cost", max_params="3M"
    )
    (files / "settings.yaml").write_text(to_yaml(settings))
    label_table(files / "table.json")
    (files / "net.onnx").write_bytes(build_onnx(ArchConfig.preset("m0"), batch=1).SerializeToString())
    finished(folder / "finished")
    ship(folder / "finished", folder / "shipped", conditions=FILES, images=100, calibration_images=20)
    with suppress(BaseException):
        train(begun(folder / "training", folder / "shades"), Stopped(5))
    search(new_run(folder / "run"))
    stored: dict[str, Any] = {"storage": "studies.log"}
    for name, more in (("half", {}), ("stored", stored)):
        (folder / name).mkdir()
        os.chdir(folder / name)
        run, measure, calls = new_run(Path(), **more), FakeDevice.measure, itertools.count()

        def mortal(*arguments, measure=measure, calls=calls):
            if next(calls) == 25:
                raise Died
            return measure(*arguments)

        FakeDevice.measure = mortal
        with suppress(Died):
            search(run)
        FakeDevice.measure = measure
        (folder / name / "arch.yaml").write_text(SearchSpace.load("efficientvit-tiny").smallest().to_yaml())
    os.chdir(folder)
    return command("report", "run") + command("eval", "finished", "--data", "digits", "--workers", "0")


def truth_of(kind: Kind, folder: Path) -> object:
    """What comes of an undamaged copy."""
    copy = Path(shutil.copytree(folder / kind.base, folder / "truth"))
    with chdir(copy):
        if kind.truth is front:
            search(Run.open(Path()))
        else:
            train(Path(), Watch())
        found = kind.truth(Path())
    shutil.rmtree(copy)
    return found


def contents(folder: Path) -> dict[str, bytes]:
    """Every file by its path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and not p.is_symlink()}


def losses(before: dict[str, bytes], after: dict[str, bytes], kind: Kind, ended: Ended) -> Iterator[str]:
    """What a command has lost, in words."""
    backups = [content for name, content in after.items() if name.endswith(".torn")]
    for name, content in before.items():
        now = after.get(name)
        if name == kind.file:
            refused = ended.code != 0
            if refused and now != content and content not in backups and not (now or b"").startswith(content):
                yield f"{name}: overwritten without a copy"
            if name.endswith(".jsonl") and kind.truth is front and now is not None and content not in backups:
                gone = _ids(content) - _ids(now)
                if gone:
                    yield f"{name}: {len(gone)} lines"
        elif now is None:
            if not (ended.code == 0 and name in ("checkpoint.pt", "best.safetensors")):  # a finished training
                yield f"{name}: gone"
        elif now != content and not REPLACED.search(name) and not (name.endswith(GROWS) and now.startswith(content)):
            yield f"{name}: changed"


def _ids(content: bytes) -> set[str]:
    found = set()
    for line in content.split(b"\n")[:-1]:
        with suppress(ValueError, TypeError, KeyError):
            found.add(str(json.loads(line)["id"]))
    return found


def run(folder: Path, count: int, seed: int, only: str, jobs: int, done: Journal) -> bool:
    """Prints a line for each kind, and every case that is counted against its command."""
    DEVICES["fake"], zero_cost.score_all = FakeDevice, fake_proxies
    kinds = [kind for kind in KINDS if not only or any(part in kind.name for part in only.split(","))]
    total = sum(kind.share for kind in kinds)
    ordered = [kind for kind in kinds for _ in range(round(count * kind.share / total))]
    known = {case["number"] for case in done.read()}
    todo = [number for number in range(len(ordered)) if number not in known]
    if todo:
        rehearsed(partial(make, folder), folder, 600)
        truths = {base: _elsewhere(partial(truth_of, kind, folder), folder) for base, kind in _known(kinds).items()}

        def work(job: int) -> int:
            own, parent = folder / f"job{job}", os.getppid()
            own.mkdir()
            for number in todo[job::jobs]:
                if os.getppid() != parent:
                    return 1
                start, rng = time.monotonic(), random.Random(f"{seed} {number}")
                found, words = _case(folder, own, ordered[number], rng, truths, number)
                seconds = round(time.monotonic() - start, 2)
                done.append({"number": number, "found": found, "seconds": seconds, "words": words})
            return 0

        for job, ended in enumerate([Fork(partial(work, job), folder / f"log{job}") for job in range(jobs)]):
            assert ended.wait(10**6).code == 0, (folder / f"log{job}").read_text()
    return _print(ordered, kinds, {case["number"]: case for case in done.read()})


def _known(kinds: list[Kind]) -> dict[str, Kind]:
    """The kinds of which it is known what must come of them, by folder and by what."""
    return {f"{kind.base} {kind.truth.__name__}": kind for kind in kinds if kind.truth}


def _print(ordered: list[Kind], kinds: list[Kind], cases: dict[int, dict[str, Any]]) -> bool:
    columns = ["files", "accepted", "refused", "tracebacks", "deaths", "hangs", "lost", "unnoticed", "s"]
    rows: dict[str, Counter[str]] = {kind.name: Counter() for kind in kinds}
    for number, kind in enumerate(ordered):
        rows[kind.name].update(cases[number]["found"])
        rows[kind.name]["s"] += cases[number]["seconds"]
        if cases[number].get("words"):
            print(cases[number]["words"])
    sums: Counter[str] = sum(rows.values(), Counter())
    print(f"\n{'kind':26}" + "".join(f"{column:>11}" for column in columns))
    for name, row in [*rows.items(), ("all", sums)]:
        print(f"{name:26}" + "".join(f"{row[column]:11.0f}" for column in columns))
    return not any(sums[column] for column in columns[3:-1])


def _elsewhere(function: Callable[[], object], folder: Path) -> object:
    """What a function returns, called in a process of its own."""
    import pickle

    def work() -> int:
        (folder / "value").write_bytes(pickle.dumps(function()))
        return 0

    ended = Fork(work, folder / "log").wait(300)
    assert ended.code == 0, ended.text
    return pickle.loads((folder / "value").read_bytes())


def _case(
    folder: Path, own: Path, kind: Kind, rng: random.Random, truths: dict[str, object], number: int
) -> tuple[list[str], str]:
    """Runs one case in the folder `own`: what to count, and what to say about it."""
    case = Path(shutil.copytree(folder / kind.base, own / "case" / "copy", symlinks=True))
    path = case / kind.file
    os.environ["XDG_CACHE_HOME"] = str(own / "cache")
    if kind.file == "table.jsonl":
        _latency_table(path)
    path.write_bytes(kind.damage(path.read_bytes(), rng))
    line = rng.choice(kind.commands)
    if kind.file == "table.jsonl":
        _latency_table(path, back=True)
    before = contents(case)

    def work() -> int:
        os.chdir(case)
        return command(*line.split())

    ended = Fork(work, own / "log").wait(LIMIT_S)
    if ended.code is None:
        faults = ["hangs"]
    elif ended.code < 0:
        faults = ["deaths"]
    else:
        faults = ["tracebacks"] if ended.code > 2 or FAULT.search(ended.text) else []
    found = ["files", *(faults or ["refused" if ended.code else "accepted"])]
    lost = list(losses(before, contents(case), kind, ended))
    faults += ["lost"] if lost else []
    if kind.truth and ended.code == 0 and line == kind.commands[-1]:
        with chdir(case):
            came = _elsewhere(partial(kind.truth, Path()), own)
        faults += [] if came == truths[f"{kind.base} {kind.truth.__name__}"] else ["unnoticed"]
    words = ""
    if faults:
        if place := os.environ.get("KEEP"):
            kept = Path(shutil.copytree(case, Path(place) / str(number), symlinks=True, dirs_exist_ok=True))
            (kept / kind.file).write_bytes(before.get(kind.file, b""))
        words = f"case {number}, {kind.name}: {', '.join(faults)} {lost or ''} `{line}` exit code {ended.code}, "
        words += "\n  ".join([f"{ended.seconds:.1f} s", *ended.text.strip().splitlines()[-6:]])
    shutil.rmtree(own / "case")
    return [*found, *[fault for fault in faults if fault not in found]], words


def _latency_table(path: Path, back: bool = False) -> None:
    """Measurements of the fake device, which a command finds in the cache folder; `back` puts them there."""
    from evit_nas.config import Conditions
    from evit_nas.latency.samples import Table
    from tests.searches import SPACE, known_device

    table = Table(FakeDevice(Conditions(device="fake")).context(), SPACE)._journal.path
    if back:
        shutil.move(path, table)
    else:
        table.unlink(missing_ok=True)
        known_device()
        shutil.copy(table, path)
