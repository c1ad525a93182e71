"""Damaged YAML files: each is read or refused in one message that names the file and the field, and quickly."""

import copy
import random
import re
import time
from pathlib import Path

import pytest
import yaml

from evit_nas.arch import PRESETS, ArchConfig
from evit_nas.errors import UsageError
from evit_nas.runs import Run
from evit_nas.space import SearchSpace, shipped_spaces
from evit_nas.words import load_settings, settings_from
from evit_nas.yamlio import to_yaml

SECONDS = 5  # of processor time for one file, on a slow machine
STRANGE = [
    *(None, True, "", "none", "ä\u202e\U0001f600", "1e999", "=", "m0", [], {}, [[]], [None], {"from": 1}),
    *(-1, 0, 10**30, -(10**400), 1e308, float("nan"), float("inf"), 0.1, "2001-99-01", "9" * 5000, {1: 2}),
    *({"from": 1, "to": 10**9}, {"from": 1, "to": 2, "step": 1e-300}, {"from": 2, "to": 1}, {"a": {"b": {"c": [1]}}}),
    *(list(range(2000)), [1] * 50, [[16, 32]] * 3, ["softmax", 3, None]),
]
RAW = [
    *("\t", "\0", "\ufeff", "&a ", "*a", "!!python/object:os.system ", "%YAML 9.9\n", "---\n", "...\n", "<<: ", "? "),
    *("[" * 3000, "{" * 3000, "- " * 3000, '"', "'", "|", ">-\n", "#", ":", ": ", "0x", "\\", "\udcff"),
    "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
]


def _places(value, path=()):
    """Paths of all parts of a tree."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield from _places(part, (*path, key))


def _mutated_tree(tree, rng):
    """A tree with one part deleted, renamed, repeated or replaced."""
    *parents, key = rng.choice([path for path in _places(tree) if path])
    place = tree
    for step in parents:
        place = place[step]
    what = rng.choice(("delete", "rename", "repeat", "replace", "replace", "replace"))
    if what == "delete":
        del place[key]
    elif what == "replace" or (isinstance(place, dict) and what == "repeat"):
        place[key] = copy.deepcopy(rng.choice(STRANGE))
    elif isinstance(place, dict):
        place[rng.choice([f"{key}s", str(key).upper(), "", "ä", 3, None, True])] = place.pop(key)
    else:
        place[key:key] = [copy.deepcopy(place[key])] * rng.choice((1, 40))
    return tree


def _mutated(text, rng):
    """The bytes of a damaged file: its values or its letters are changed, or bits of it are flipped."""
    what = rng.random()
    if what < 0.6:
        tree = yaml.safe_load(text)
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            if tree:
                tree = _mutated_tree(tree, rng)
        return yaml.dump(tree, sort_keys=False, allow_unicode=True).encode(errors="surrogatepass")
    start = rng.randrange(len(text))
    if what < 0.9:
        end = rng.choice((start, start + 1, start + rng.randrange(60)))
        return (text[:start] + rng.choice([*RAW, ""]) + text[end:]).encode(errors="surrogatepass")
    data = bytearray(text.encode())
    for _ in range(rng.choice((1, 5, 50))):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data[: rng.choice((len(data), start))])


def _read_run(path):
    (path.parent / "run.yaml").write_bytes(path.read_bytes())
    return Run.open(path.parent)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """What a user may hand over: kind -> a good text of it, and what reads it."""
    settings = settings_from(
        budget="5ms", space="efficientvit-tiny", accuracy="zero-cost", max_params="3M", time="10m", session=["a=b"]
    )
    run = Run.create(tmp_path_factory.mktemp("run"), settings, {"cores": 2}, "evit-nas search")
    spaces = {name: (path.read_text(), SearchSpace.load) for name, path in shipped_spaces().items()}
    return spaces | {
        "arch": (ArchConfig.preset(next(iter(PRESETS))).to_yaml("a network"), ArchConfig.load),
        "settings": (to_yaml(settings), load_settings),
        "run": ((run.path / "run.yaml").read_text(), _read_run),
    }


def _check(kinds, folder: Path, seed: int) -> str:
    """Reads one damaged file; says what became of it."""
    rng = random.Random(seed)
    kind = rng.choice(sorted(kinds))
    text, load = kinds[kind]
    path = folder / f"{kind}.yaml"
    path.write_bytes(_mutated(text, rng))
    start = time.process_time()
    try:
        load(path)
    except UsageError as error:
        message, outcome = str(error), "refused"
    else:
        message, outcome = "", "read"
    seconds = time.process_time() - start
    assert seconds < SECONDS, f"seed {seed}: {seconds:.1f} s for {path.read_bytes()[:500]!r}"
    if message:
        assert message.startswith((str(path), str(folder / "run.yaml"))), f"seed {seed}: {message}"
        assert len(message) < 40_000, f"seed {seed}: a message of {len(message)} letters"
        assert all(line.isprintable() for line in message.splitlines()), f"seed {seed}: {message!r}"
        rest = message.removeprefix(str(path)).removeprefix(str(folder / "run.yaml"))
        named = r"(, line \d+, column \d+)?: |: \d+ fields are wrong:\n"
        assert re.match(named, rest), f"seed {seed}: {message}"
    return outcome


def test_good_files_are_read(kinds, tmp_path):
    for kind, (text, load) in kinds.items():
        (tmp_path / f"{kind}.yaml").write_text(text)
        assert load(tmp_path / f"{kind}.yaml") is not None


def test_a_damaged_file_is_read_or_refused(kinds, tmp_path):
    assert {_check(kinds, tmp_path, seed) for seed in range(100)} == {"read", "refused"}


@pytest.mark.slow
def test_a_thousand_damaged_files_are_read_or_refused(kinds, tmp_path):
    assert {_check(kinds, tmp_path, seed) for seed in range(1000, 2000)} == {"read", "refused"}
