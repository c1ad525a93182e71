"""Does it work in surroundings that are against it?

    PYTHONPATH=. python benchmarks/hostile.py            # --only WORD for a few

The command line in a process of its own, once for each situation: strange names, folders that are gone, limits of the
system, signals, two at once. Searches run on the tests' stand-in for a device, so that seconds do; what measures,
measures m0 in earnest. Needs no root; what only root can make (full disks, quotas, file systems without locks, another
clock) is in docs/situations-environment.md. Ends with exit code 1 if anything is not as expected.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from evit_nas.latency.machine import probe

SEARCH = ("search", "--device", "fake", "--budget", "1.2ms", "--space", "efficientvit-tiny", "--pool", "6")
ODD = 'it\'s 50% ?a=b#c {x} "ü"\n'
UNGUARDED = """
import evit_nas
found = evit_nas.search(space="efficientvit-tiny", budget="9ms", trials=5, pool=4, front_size=1, workers=1, out="r")
print(len(found.front), "on the front")
"""

Situation = Callable[[Path], str]
"""Makes a situation in an empty folder; returns what is not as expected, or an empty text."""


def command(*arguments: str, fakes: bool = True, python: tuple[str, ...] = ()) -> list[str]:
    interpreter = [sys.executable, *python]
    return [*interpreter, __file__, "--as", *arguments] if fakes else [*interpreter, "-m", "evit_nas", *arguments]


def surroundings(folder: Path, **changes: str | None) -> dict[str, str]:
    """A cache of its own, and what changes; None takes a variable away."""
    known = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    known["PYTHONPATH"] = str(Path(__file__).parents[1])
    return {name: value for name, value in {**known, **changes}.items() if value is not None}


def call(
    folder: Path,
    *arguments: str,
    code: int = 0,
    says: str = "",
    fakes: bool = True,
    python: tuple[str, ...] = (),
    cwd: Path | None = None,
    limit: Callable[[], object] | None = None,
    changes: Mapping[str, str | None] = {},
) -> str:
    ended = subprocess.run(
        command(*arguments, fakes=fakes, python=python),
        cwd=cwd or folder,
        env=surroundings(folder, **changes),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        preexec_fn=limit,
        check=False,
    )
    words = " ".join(ended.stderr.split())
    if ended.returncode == code and says in words and "Traceback" not in words:
        return ""
    return f"`{arguments[0]}` ended with {ended.returncode}: {words[-200:]}"


def searched(folder: Path, out: str = "r", **how: Any) -> str:
    """A search, its front and its database where they belong."""
    wrong = call(folder, *SEARCH, "--trials", "12", "--out", out, **how)
    return wrong or call(folder, "front", out, **how) or ("" if (folder / out / "study.db").exists() else "no study.db")


def removed(folder: Path) -> str:
    wrong, gone = searched(folder), folder / "gone"
    gone.mkdir()
    how: dict[str, Any] = {"code": 2, "says": "change to one that exists", "fakes": False}
    return wrong or call(folder, "front", str(folder / "r"), cwd=gone, limit=gone.rmdir, **how)


def shadowed(folder: Path) -> str:
    for name in ("profile", "platform", "onnx", "numpy", "queue"):
        (folder / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    return call(folder, "measure", "m0", fakes=False, python=("-P",))


def short_of_memory(folder: Path) -> str:
    limit = partial(resource.setrlimit, resource.RLIMIT_AS, (700 * 2**20,) * 2)
    return call(folder, "measure", "m0", fakes=False, limit=limit, code=1, says="out of memory")


def begun(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command(*arguments), cwd=folder, env=surroundings(folder), **pipes)


def lines(run: Path) -> int:
    with suppress(OSError):
        return len((run / "measurements.jsonl").read_text(encoding="utf-8").splitlines())
    return 0


def ended_by(number: signal.Signals, folder: Path) -> str:
    """The front of an interrupted and resumed search is that of an uninterrupted one."""
    process = begun(folder, *SEARCH, "--trials", "200", "--out", "r")
    while process.poll() is None and lines(folder / "r") < 40:
        time.sleep(0.02)
    process.send_signal(number)
    words = process.communicate()[1]
    if process.returncode != 128 + number or "evit-nas resume r" not in words:
        return f"ended with {process.returncode}: {words[-200:]}"
    wrong = call(folder, "resume", "r") or call(folder, *SEARCH, "--trials", "200", "--out", "whole")
    fronts = [sorted(path.name for path in (folder / run).glob("front/*.yaml")) for run in ("r", "whole")]
    return wrong or ("" if fronts[0] == fronts[1] else "another front than that of an uninterrupted search")


def two_at_once(folder: Path) -> str:
    first = begun(folder, *SEARCH, "--trials", "300", "--out", "r")
    while first.poll() is None and lines(folder / "r") < 20:
        time.sleep(0.02)
    wrong = call(folder, "resume", "r", code=2, says="is being written by process")
    return wrong or call(folder, "front", "r") or ("" if first.wait() == 0 else "the first one was disturbed")


def read_only(folder: Path) -> str:
    wrong = searched(folder)
    (folder / "r").chmod(0o500)
    try:
        return wrong or call(folder, "front", "r") or call(folder, "resume", "r", code=2, says="Permission denied")
    finally:
        (folder / "r").chmod(0o700)


def unguarded(folder: Path) -> str:
    (folder / "program.py").write_text(UNGUARDED)
    pipes: dict[str, Any] = {"capture_output": True, "text": True, "check": False}
    for arguments, text in ((["program.py"], None), (["-"], UNGUARDED.replace('"r"', '"s"'))):
        ended = subprocess.run([sys.executable, *arguments], input=text, cwd=folder, env=surroundings(folder), **pipes)
        if ended.returncode or "1 on the front" not in ended.stdout:
            return f"ended with {ended.returncode}: {ended.stderr[-200:]}"
    return ""


def between_time_zones(folder: Path) -> str:
    wrong = searched(folder, changes={"TZ": "Pacific/Apia"})
    return wrong or call(folder, "resume", "r", changes={"TZ": "America/Adak"})


SITUATIONS: dict[str, Situation] = {
    "a run folder called " + repr(ODD): partial(searched, out=ODD),
    "TMPDIR does not exist": partial(searched, changes={"TMPDIR": "/no/such/folder"}),
    "the cache folder cannot be made": partial(searched, changes={"XDG_CACHE_HOME": "/proc/no"}),
    "no HOME": partial(searched, changes={"HOME": None, "XDG_CACHE_HOME": None}),
    "the current folder is gone": removed,
    "the current folder holds profile.py, numpy.py, ...": shadowed,
    "64 open files at most": partial(searched, limit=partial(resource.setrlimit, resource.RLIMIT_NOFILE, (64, 64))),
    "one core": partial(searched, limit=partial(os.sched_setaffinity, 0, {min(os.sched_getaffinity(0))})),
    "0.7 GB of address space": short_of_memory,
    "python -O": partial(searched, python=("-O",)),
    "LC_ALL=C, an ASCII terminal of 40 columns": partial(
        searched, changes={"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "COLUMNS": "40"}
    ),
    "Ctrl-C": partial(ended_by, signal.SIGINT),
    "SIGTERM": partial(ended_by, signal.SIGTERM),
    "SIGHUP": partial(ended_by, signal.SIGHUP),
    "two resumes at once": two_at_once,
    "somebody else's run folder (not for root)": read_only,
    "a script without a main guard, and piped in": unguarded,
    "begun in one time zone, resumed in another": between_time_zones,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="situations with this word in their name")
    parser.add_argument("--as", dest="verb", nargs=argparse.REMAINDER, help="be evit-nas: how this calls itself")
    wish = parser.parse_args()
    if wish.verb:
        from evit_nas import cli
        from evit_nas.accuracy import zero_cost
        from evit_nas.latency import DEVICES
        from tests.fakes import FakeDevice, fake_proxies

        DEVICES["fake"], zero_cost.score_all = FakeDevice, fake_proxies
        sys.argv = ["evit-nas", *wish.verb]
        cli.main()
        return
    machine, failed = probe(), 0
    print(f"{machine.processor}, {machine.cores} cores, {machine.system}\n")
    print("| situation | as expected |\n| --- | --- |")
    for name, situation in SITUATIONS.items():
        if wish.only in name and not (situation is read_only and os.geteuid() == 0):
            with tempfile.TemporaryDirectory() as scratch:
                wrong = situation(Path(scratch))
            failed += bool(wrong)
            print(f"| {name} | {wrong or 'yes'} |", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
