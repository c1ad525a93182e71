"""fastai trains the network, and what it saves computes what was trained: pip install fastai."""

import tempfile
from pathlib import Path

import torch
from common import compared
from fastai import __version__
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from torch.utils.data import TensorDataset
from torch_clients import network, tried


def fit(folder, images, logits):
    labels = torch.arange(len(images)) % logits.shape[1]  # others than the network knows: it has to learn
    data = DataLoaders.from_dsets(*[TensorDataset(images, labels)] * 2, bs=20, num_workers=0, device="cpu")
    with tempfile.TemporaryDirectory() as place:
        learner = Learner(data, network(folder), loss_func=CrossEntropyLossFlat(), path=Path(place))
        answer = compared(learner.get_preds()[0].log().numpy(), torch.from_numpy(logits).log_softmax(1).numpy())
        with learner.no_logging():
            before = learner.validate()[0]
            learner.fit(3, 1e-3)
            after = learner.validate()[0]
        learner.save("trained")
        again = Learner(data, network(folder), loss_func=CrossEntropyLossFlat(), path=Path(place)).load("trained").model
    with torch.inference_mode():
        restored = compared(again.eval()(images).numpy(), learner.model.eval()(images).numpy())
    if not after < before or restored["difference"] != 0:
        raise ValueError(f"losses {before} and {after}, and what was saved is {restored['difference']:.1e} away")
    return answer | {"loss": [before, after]}


if __name__ == "__main__":
    tried("fastai", __version__, fit, how="`Learner.fit`, `save`, `load`")
