"""Files are UTF-8 whatever the locale, and what is printed adapts to what the terminal can show."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "utf-8"}

WITH_FAKES = """
import sys, warnings
warnings.filterwarnings("error", category=EncodingWarning, module="evit_nas")
from evit_nas import cli
from evit_nas.accuracy import zero_cost
from evit_nas.latency import DEVICES
from tests.fakes import FakeDevice, fake_proxies
DEVICES["fake"], zero_cost.score_all = FakeDevice, fake_proxies
cli.main()
"""


def evit_nas(*arguments: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    """The command line in a process of its own, on the fake device and with fake proxies; every read and write of text
    that leaves the encoding to the locale is an error there."""
    root = str(Path(__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", "-c", WITH_FAKES, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": root, "COLUMNS": "80"} | environment,
        capture_output=True,
        check=False,
    )


@pytest.mark.slow
def test_a_run_made_in_a_locale_without_utf_8_is_read_in_any(tmp_path):
    search = ["search", "--space", "efficientvit-tiny", "--device", "fake", "--budget", "1.2ms", "--trials", "12"]
    made = evit_nas(*search, "--pool", "6", "--out", "run", folder=tmp_path, environment=ASCII)
    assert made.returncode == 0, made.stderr
    for path in [*(tmp_path / "run" / "front").iterdir(), tmp_path / "run" / "report.html"]:
        assert "±" in path.read_text(encoding="utf-8")
    for environment in (ASCII, {"PYTHONUTF8": "1"}):
        done = evit_nas("report", "run", "--plot", "run/front.svg", folder=tmp_path, environment=environment)
        assert done.returncode == 0, done.stderr
