"""Do random networks compute the same in torch, folded, and in ONNX Runtime? To be run before a release.

    PYTHONPATH=. python benchmarks/parity.py                 # 200 members of every shipped space
    PYTHONPATH=. python benchmarks/parity.py --members 1000 --space efficientvit-96

Live BatchNorm statistics and gammas, one image of the space's own size; and two of 64 px for what a member computes
with shared weights and taken out of them. Prints the largest differences, and ends with exit code 1 if one is not
allowed. The tests check members that cover the pairs of choices by the same rules.
"""

from __future__ import annotations

import argparse
import copy
import random
import sys
from dataclasses import dataclass

import onnxruntime as ort
import torch

from evit_nas.arch import ArchConfig
from evit_nas.network.deploy import deploy_weights, fold
from evit_nas.network.elastic import Elastic
from evit_nas.network.lively import lively_network
from evit_nas.network.onnx_graph import build_onnx
from evit_nas.space import SearchSpace, shipped_spaces

FOLDED = 1e-6  # in double precision: folding is exact
EXTRACTED = 1e-6  # of the outputs, in double precision
SHARED_PX = 64  # the size of the map proves nothing about shared weights
SINGLE, TIMES = 1e-4, 10  # ONNX Runtime may be off by so much, or by so many times what torch is in single precision


@dataclass(frozen=True)
class Parity:
    """Largest differences of one network, relative to its largest output in double precision."""

    folded: float
    """Of the folded network in double precision."""
    onnx: float
    """Of the deploy graph in ONNX Runtime."""
    single: float
    """Of torch in single precision, folded or not: a few members amplify it (ReLU linear attention divides by sums that
    may be almost zero)."""

    @property
    def holds(self) -> bool:
        """Whether they are as small as the arithmetic allows."""
        return self.folded < FOLDED and self.onnx < max(SINGLE, TIMES * self.single)


@torch.inference_mode()
def parity(arch: ArchConfig, seed: int) -> Parity:
    """The differences of a lively network of `arch`."""
    height, width = arch.input_size
    fitted_to = 2 * (224 // width)  # so that the last map, down to one token, has enough values for statistics
    images = torch.randn(1, arch.in_channels, height, width, generator=torch.Generator().manual_seed(0))
    model = lively_network(arch, seed=seed, images=fitted_to)
    double = copy.deepcopy(model).double()
    exact = double(images.double())

    def off(output: torch.Tensor) -> float:
        return float((output.double() - exact).abs().max() / exact.abs().max())

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    graph = build_onnx(arch, deploy_weights(model)).SerializeToString()
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"input": images.numpy()})
    return Parity(
        folded=off(fold(double)(images.double())),
        onnx=off(torch.from_numpy(logits)),
        single=max(off(one(images)) for one in (model, fold(model))),
    )


@torch.no_grad()
def lively_supernet(space: SearchSpace) -> Elastic:
    """The shared weights of a space at 64 px in double precision, with live gammas and biases."""
    elastic = Elastic(space.model_copy(update={"image_size": SHARED_PX})).double()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in elastic.named_parameters():
        if "bn" in name or name.endswith("table"):
            parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    return elastic


@torch.no_grad()
def extraction(elastic: Elastic, arch: ArchConfig) -> float:
    """The largest difference of a member's outputs, taken out of shared weights and within them; BatchNorms live."""
    member = arch.model_copy(update={"image_size": SHARED_PX})
    images = torch.randn(
        2, arch.in_channels, SHARED_PX, SHARED_PX, generator=torch.Generator().manual_seed(0), dtype=torch.double
    )
    return float((elastic.extract(member)(images) - elastic(member, images)).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--members", type=int, default=200)
    parser.add_argument("--space", nargs="+", default=sorted(shipped_spaces()))
    args = parser.parse_args()
    wrong = 0
    for name in args.space:
        space, rng = SearchSpace.load(name), random.Random(0)
        elastic, found, extracted = lively_supernet(space), list[Parity](), list[float]()
        for number in range(args.members):
            arch = space.sample(rng)
            found.append(parity(arch, number))
            extracted.append(extraction(elastic, arch))
            if not found[-1].holds or not extracted[-1] < EXTRACTED:
                wrong += 1
                print(f"{found[-1]}, extracted {extracted[-1]}\n{arch.to_yaml()}")
        folded, onnx = max(one.folded for one in found), max(one.onnx for one in found)
        print(
            f"{name}: {len(found)} members, folded off by at most {folded:.1e}, ONNX Runtime by {onnx:.1e}, "
            f"extracted by {max(extracted):.1e}",
            flush=True,
        )
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
