"""torchvision's Faster R-CNN with a feature pyramid on a found backbone: pip install torchvision timm evit-nas.

The maps at strides 16, 32 and 64 must be those of the network itself; then a few steps of training, which every tensor
of the backbone must feel, and detections on photographs.
"""

import numpy as np
import torch
from common import compared
from torch import nn
from torch_clients import network, tried
from torchvision import __version__
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

CHANNELS, STEPS = 64, 5
MAPS = ["0", "1", "2"]


class Backbone(nn.Module):
    """Maps of one width at three strides, by their names, as torchvision asks for them."""

    def __init__(self, maps: nn.Module) -> None:
        super().__init__()
        self.maps, self.out_channels = maps, CHANNELS
        self.pyramid = FeaturePyramidNetwork(maps.feature_info.channels(), CHANNELS)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.pyramid(dict(zip(MAPS, self.maps(images), strict=True)))


def detect(folder, images, logits):
    model, maps = network(folder), network(folder, features_only=True)
    with torch.inference_mode():
        expected = model.forward_intermediates(images)[1]
        found = maps(images)
    answer = compared(*(np.concatenate([m.flatten(1).numpy() for m in each], axis=1) for each in (found, expected)))
    size = images.shape[2:]
    detector = FasterRCNN(
        Backbone(maps),
        num_classes=3,
        min_size=min(size),
        max_size=max(size),
        image_mean=[0.0] * 3,  # the images are normalised already
        image_std=[1.0] * 3,
        rpn_anchor_generator=AnchorGenerator(((32,), (64,), (128,)), ((0.5, 1.0, 2.0),) * 3),
        box_roi_pool=MultiScaleRoIAlign(MAPS, output_size=7, sampling_ratio=2),
    )
    box = torch.tensor([[8.0, 8.0, size[1] - 8.0, size[0] - 8.0]])
    targets = [{"boxes": box, "labels": torch.tensor([1 + i % 2])} for i in range(4)]
    optimiser = torch.optim.SGD(detector.parameters(), 0.01)
    losses = []
    for _ in range(STEPS):
        loss = sum(detector(list(images[:4]), targets).values())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    unfelt = [name for name, tensor in maps.named_parameters() if tensor.grad is None or not tensor.grad.any()]
    if unfelt:
        raise ValueError(f"{len(unfelt)} tensors have no gradient: {unfelt[0]}")
    if not losses[-1] < losses[0]:
        raise ValueError(f"the loss does not fall: {losses}")
    with torch.inference_mode():
        boxes = [len(each["boxes"]) for each in detector.eval()(list(images[:4]))]
    return answer | {"same": None, "loss": [losses[0], losses[-1]], "boxes": boxes}


if __name__ == "__main__":
    tried("torchvision Faster R-CNN with FPN", __version__, detect, how="`features_only=True`, `FasterRCNN`")
