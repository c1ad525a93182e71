"""timm's own tests of its models (tests/test_models.py) on five EfficientViTs, beside timm's efficientvit_m0.

    pip download timm==1.0.31 --no-binary :all: --no-deps && tar xf timm-1.0.31.tar.gz
    python benchmarks/clients/timm_tests.py timm-1.0.31/tests/test_models.py

Forward and backward, the description of the network, TorchScript, symbolic tracing, features and intermediates: all
tests there that take every model. Prints versions and one Markdown line for each network; ends with pytest's exit code.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch

import evit_nas  # noqa: F401 makes the architectures known to timm
from evit_nas.arch import ArchConfig
from evit_nas.latency.machine import probe
from evit_nas.timm_entry import LAYERS, shapes

STAGES = [{"width": 64, "depth": 1}, {"width": 96, "depth": 1}, {"width": 128, "depth": 2}]
MIXERS = [{"mixer": "linear"}, {"mixer": "none"}, {"mixer": "linear", "heads": 2}]
REFERENCE = "efficientvit_m0"


def arch(*changes: dict[str, Any], image_size: int | list[int] = 224) -> ArchConfig:
    """A small network; `changes` of the stages, one for all or one each."""
    each = changes if len(changes) == 3 else changes * 3
    stages = [stage | {"heads": 4} | change for stage, change in zip(STAGES, each, strict=True)]
    return ArchConfig.model_validate({"image_size": image_size, "stages": stages})


# names that timm's tests treat as efficientvit_m0: a classifier needs pooling, in its class as in ours
ARCHS = {
    "efficientvit_mnas_m0": ArchConfig.preset("m0"),
    "efficientvit_mnas_cascade": arch({"v_ratio": 1.5, "window": 3}),
    "efficientvit_mnas_parallel": arch({"cascade": False}),
    "efficientvit_mnas_linear_and_none": arch(*MIXERS),
    "efficientvit_mnas_rectangle": arch({}, image_size=[192, 256]),
}


def register() -> None:
    """Each architecture as a model of its own, in a module of its own, as timm wants it."""
    module = ModuleType("five_efficientvits")
    sys.modules[module.__name__] = module
    module.default_cfgs = {name: LAYERS | shapes(config) for name, config in ARCHS.items()}
    for name, config in ARCHS.items():

        def create(pretrained: bool = False, *, _arch: ArchConfig = config, **words: Any) -> torch.nn.Module:
            words["pretrained_cfg"] = timm.get_pretrained_cfg(words.pop("pretrained_cfg", None) or create.__name__)
            return timm.create_model("evit_nas", pretrained=pretrained, arch=_arch, **words)

        create.__name__, create.__module__ = name, module.__name__
        setattr(module, name, create)
        timm.models.register_model(create)


class OnlyThese:
    """Leaves the tests of these models among timm's thousands, and counts how they end."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Counter[str]] = defaultdict(Counter)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if self._model(item.nodeid) and "pretrained" not in item.name]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or (report.outcome != "passed" and report.when == "setup"):
            self.outcomes[self._model(report.nodeid) or ""][report.outcome] += 1

    def _model(self, nodeid: str) -> str | None:
        given = nodeid.partition("[")[2].removesuffix("]").split("-")
        return next((name for name in (*ARCHS, REFERENCE) if name in given), None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", type=Path, help="test_models.py of timm's sources, of the installed version")
    tests = parser.parse_args().tests
    register()
    timm.list_models = _few(timm.list_models)
    plugin = OnlyThese()
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:warnings", "--rootdir", str(tests.parent), "-c", "/dev/null"]
    code = pytest.main([str(tests), *options, "-n", "0"], plugins=[plugin])
    print(f"\ntimm {version('timm')}, torch {torch.__version__}, torchvision {version('torchvision')}; {probe()}\n")
    print("| network | passed | failed | skipped |\n| --- | --- | --- | --- |")
    for name in (*ARCHS, REFERENCE):
        counted = plugin.outcomes[name]
        print(f"| {name} | {counted['passed']} | {counted['failed']} | {counted['skipped']} |")
    return int(code)


def _few(list_models: Any) -> Any:
    """timm's list of models where these are among them, so that a thousand others are not collected."""

    def listed(*words: Any, **filters: Any) -> list[str]:
        return [name for name in list_models(*words, **filters) if name in (*ARCHS, REFERENCE)]

    return listed


if __name__ == "__main__":
    sys.exit(main())
