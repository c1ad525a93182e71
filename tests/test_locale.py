"""Files are UTF-8 whatever the locale, and what is printed adapts to what the terminal can show."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from evit_nas.arch import ArchConfig

ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}

WITH_FAKES = """
import sys, warnings
from evit_nas import cli
warnings.filterwarnings("error", category=EncodingWarning, module="evit_nas")
if "--device" in sys.argv:
    from evit_nas.accuracy import zero_cost
    from evit_nas.latency import DEVICES
    from tests.fakes import FakeDevice, fake_proxies
    DEVICES["fake"], zero_cost.score_all = FakeDevice, fake_proxies
cli.main()
"""


def evit_nas(*arguments: str | bytes, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
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
    done = evit_nas("report", "run", "--plot", "run/front.svg", folder=tmp_path, environment={"PYTHONUTF8": "1"})
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("environment", [ASCII, {"PYTHONIOENCODING": "ascii"}], ids=["locale", "PYTHONIOENCODING"])
def test_what_a_terminal_cannot_show_is_spelled_with_what_it_can(tmp_path, environment):
    done = evit_nas("describe", "m0", folder=tmp_path, environment=environment)
    assert done.returncode == 0, done.stderr
    assert b"input 3x224x224" in done.stdout
    assert done.stdout.isascii()
    measured = evit_nas("measure", "m0", "--device", "fake", folder=tmp_path, environment=environment)
    assert measured.returncode == 0, measured.stderr
    assert b"~1.0%" in measured.stdout


@pytest.mark.parametrize("environment", [ASCII, {"PYTHONUTF8": "1"}], ids=["ASCII", "UTF-8"])
def test_a_file_s_name_comes_out_byte_for_byte(tmp_path, environment):
    path = os.fsencode(tmp_path) + "/größe, ".encode() + b"gr\xf6\xdfe.yaml"
    with open(path, "w", encoding="utf-8") as file:
        file.write(ArchConfig.preset("m0").to_yaml())
    done = evit_nas("describe", path, folder=tmp_path, environment=environment | {"COLUMNS": "500"})
    assert done.returncode == 0, done.stderr
    assert path in done.stdout
