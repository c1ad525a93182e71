"""What the README shows is what the program takes."""

import re
import shlex
from pathlib import Path

import pytest
import timm
import torch
from typer.testing import CliRunner

from evit_nas.arch import ArchConfig
from evit_nas.cli import app

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```(\w*)\n(.*?)```|^    (evit-nas [^\n]*)$", (ROOT / "README.md").read_text(), re.S | re.M)
SHELL = [
    line for language, block, indented in BLOCKS if language != "python" for line in (block + indented).splitlines()
]
COMMANDS = sorted({match[0].strip() for line in SHELL for match in re.finditer(r"evit-nas [a-z][^#&>()$]*", line)})


def test_there_are_commands_to_check():
    assert len(COMMANDS) >= 6


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_verb_and_options_that_exist(command):
    verb, *rest = shlex.split(command)[1:]
    verbs = [verb, rest.pop(0)] if verb in ("latency", "device", "proxies") else [verb]
    shown = CliRunner().invoke(app, [*verbs, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
    assert shown.exit_code == 0, f"no verb '{verb}'"
    for option in (word for word in rest if word.startswith("--")):
        assert option in shown.output


def test_the_python_example_runs(tmp_path, monkeypatch):
    (code,) = (block for language, block, _ in BLOCKS if language == "python" and "load_weights" in block)
    monkeypatch.chdir(tmp_path)
    (architecture,) = re.findall(r'ArchConfig\.load\("(.*?)"\)', code)
    (checkpoint,) = re.findall(r'load_weights\(model, "(.*?)"\)', code)
    Path(architecture).write_text(ArchConfig.preset("m4").to_yaml())
    torch.save(timm.create_model("efficientvit_m4").state_dict(), checkpoint)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["logits"].shape == (1, 1000)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "runs/README.md"])
def test_every_file_that_a_page_links_exists(page):
    text = (ROOT / page).read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    assert all((ROOT / page).parent.joinpath(link).exists() for link in links)
