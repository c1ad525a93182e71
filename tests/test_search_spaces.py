"""What a shipped space proposes is what gets deployed: samples of each, from torch over folding to ONNX Runtime."""

import random

import onnxruntime as ort
import pytest
import torch

from evit_nas.network.deploy import deploy_weights, fold
from evit_nas.network.model import build
from evit_nas.network.onnx_graph import build_onnx
from evit_nas.space import SearchSpace, shipped_spaces
from tests.networks import lively, relative_error

SAMPLES = 200


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(shipped_spaces()))
@torch.inference_mode()
def test_random_members_compute_the_same_in_torch_folded_and_in_onnx_runtime(name):
    space, rng = SearchSpace.load(name), random.Random(0)
    height, width = space.sample(random.Random(0)).input_size
    images = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    for number in range(SAMPLES):
        arch = space.sample(rng)
        model = lively(build(arch, seed=number), seed=number)
        expected = model(images)
        assert relative_error(fold(model)(images), expected) < 1e-5, arch.to_yaml()
        graph = build_onnx(arch, deploy_weights(model)).SerializeToString()
        session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
        (logits,) = session.run(None, {"input": images.numpy()})
        assert relative_error(torch.from_numpy(logits), expected) < 1e-4, arch.to_yaml()
