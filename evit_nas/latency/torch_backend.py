"""PyTorch as a backend of the runtimes table: eager or compiled on the processor, eager on a GPU.

Networks run folded, in inference mode and channels last, as one would deploy them: on the processor channels last was
1.1 times as fast for M0 and M5 in fp32, 1.2 to 1.3 times in bf16.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from importlib.metadata import version as package_version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evit_nas.arch import ArchConfig
from evit_nas.config import Conditions
from evit_nas.errors import MeasurementError
from evit_nas.latency.protocol import Network, Stopwatch
from evit_nas.latency.runtimes import Loaded
from evit_nas.latency.values import Measurable, TimmModel

if TYPE_CHECKING:
    import torch
    from torch import nn


def missing(family: str) -> str | None:
    """See runtimes.py."""
    if find_spec("torch") is None:
        return "the package torch is not installed; pip install torch."
    if family == "torch":
        return None
    import torch

    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return f"{version(family)} is built without CUDA; install a build of torch for your CUDA version."
    return f"{version(family)} finds no NVIDIA GPU; check that nvidia-smi lists one and that its driver is new enough."


def version(family: str) -> str:
    """See runtimes.py."""
    return f"torch {package_version('torch')}"


def load(network: Measurable, conditions: Conditions) -> Loaded:
    """See runtimes.py."""
    import torch

    device = _device(conditions)
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[conditions.precision]
    model, input_size = _model(network, conditions.family)
    model = model.to(device, dtype).to(memory_format=torch.channels_last)
    images = torch.randn(conditions.batch, *input_size, generator=torch.Generator().manual_seed(0))
    images = images.to(device, dtype).to(memory_format=torch.channels_last)
    forward = _compiled(model) if conditions.argument == "compiled" else model

    @torch.inference_mode()
    def run() -> torch.Tensor:
        logits: torch.Tensor = forward(images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return logits

    return Loaded(run, (conditions.batch, *input_size))


def cuda_stopwatch(conditions: Conditions) -> Stopwatch:
    """Nanoseconds a run by events on the GPU that `conditions` mean."""
    import torch

    device = _device(conditions)
    event: Any = torch.cuda.Event

    def time_runs(network: Network, runs: int) -> float:
        with torch.cuda.device(device):
            start, end = event(enable_timing=True), event(enable_timing=True)
            start.record()
            for _ in range(runs):
                network()
            end.record()
            end.synchronize()
        return float(start.elapsed_time(end)) * 1e6 / runs  # it counts milliseconds

    return time_runs


def _device(conditions: Conditions) -> torch.device:
    """Where the network runs, prepared.

    Raises:
        MeasurementError: there is no GPU of that number.
    """
    import torch

    if conditions.family == "torch":
        torch.set_num_threads(conditions.threads)
        return torch.device("cpu")
    index, count = int(conditions.argument or 0), torch.cuda.device_count()
    if index >= count:
        raise MeasurementError(f"there is no GPU {index}; torch sees {count}, numbered from 0")
    torch.backends.cudnn.benchmark = True  # the input size is fixed: take the fastest convolutions for it
    return torch.device("cuda", index)


def _model(network: Measurable, family: str) -> tuple[nn.Module, tuple[int, ...]]:
    """The network as it is deployed, in eval mode, and its input's (channels, height, width)."""
    if isinstance(network, TimmModel):
        from evit_nas.network.timm_models import timm_network

        return timm_network(network.name, network.image_size)
    if isinstance(network, Path):
        instead = "cpu" if family == "torch" else "cuda-onnx"
        raise MeasurementError(
            f"{family} runs architectures and timm models, not ONNX files; "
            f"measure {network.name} with --device {instead}"
        )
    return _random_network(network), (network.in_channels, *network.input_size)


def _random_network(arch: ArchConfig) -> nn.Module:
    """The folded network with every tensor random, as in onnx_graph: from zeros a compiler drops what has no effect."""
    import torch

    from evit_nas.network.deploy import fold
    from evit_nas.network.model import build

    network = fold(build(arch, seed=0))
    generator = torch.Generator().manual_seed(0)
    for tensor in network.state_dict().values():
        # over the root of what an output sums up: activations keep their size
        tensor.uniform_(-0.5, 0.5, generator=generator).div_(math.sqrt(tensor[0].numel()))
    return network


def _compiled(network: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """`network` compiled by inductor at its first run, in about a minute.

    Freezing the weights into it took twice as long to compile, and made M0 no faster.

    Raises:
        MeasurementError: there is no C++ compiler.
    """
    import torch

    compiler = os.environ.get("CXX", "g++")  # as inductor looks for it
    if shutil.which(compiler) is None:
        raise MeasurementError(
            f"torch.compile needs a C++ compiler and there is no '{compiler}'; install g++, name yours in CXX, "
            "or measure with --device torch"
        )
    compiled: Callable[[torch.Tensor], torch.Tensor] = torch.compile(network, dynamic=False)
    return compiled
