"""What a shipped space proposes is what gets deployed: samples of each, from torch over folding to ONNX Runtime."""

import copy
import random

import onnxruntime as ort
import pytest
import torch

from evit_nas.network.deploy import deploy_weights, fold
from evit_nas.network.onnx_graph import build_onnx
from evit_nas.space import SearchSpace, shipped_spaces
from tests.networks import lively_network, relative_error

SAMPLES, PARTS = 200, 4


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", sorted(shipped_spaces()))
@torch.inference_mode()
def test_random_members_compute_the_same_in_torch_folded_and_in_onnx_runtime(name, part):
    """Folding is exact, so it is checked in double precision.

    ONNX Runtime computes in single precision, which a few members amplify (ReLU linear attention divides by sums
    that may be almost zero): it may be off by 1e-4, or by ten times what torch is in single precision, folded or not.
    """
    space, rng = SearchSpace.load(name), random.Random(0)
    height, width = space.smallest().input_size
    fitted_to = 2 * (224 // width)  # so that the last map, down to one token, has enough values for statistics
    images = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    for number, arch in [*enumerate(space.sample(rng) for _ in range(SAMPLES))][part::PARTS]:
        model = lively_network(arch, seed=number, images=fitted_to)
        exact_model = copy.deepcopy(model).double()
        exact = exact_model(images.double())
        assert relative_error(fold(exact_model)(images.double()), exact) < 1e-6, arch.to_yaml()

        graph = build_onnx(arch, deploy_weights(model)).SerializeToString()
        session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        (logits,) = session.run(None, {"input": images.numpy()})
        in_torch = max(relative_error(one(images), exact) for one in (model, fold(model)))
        allowed = max(1e-4, 10 * in_torch)
        assert relative_error(torch.from_numpy(logits), exact) < allowed, arch.to_yaml()
