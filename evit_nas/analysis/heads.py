"""Head similarity: do the heads of a layer say different things? (arXiv 2305.07027, figure 4)

What is compared is what the layer's last projection reads: the outputs of the heads, in EfficientViT's softmax mixers
after their ReLU. For one image a head's output is one vector over its channels and all positions. Each head counts
with its most similar neighbour, image by image; the mean over the images is reported. Two heads that say the same
have similarity 1. Values without negative parts are more alike than others: compare EfficientViTs, cascaded and not,
with each other, and DeiT with Swin.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evit_nas.analysis.channels import mixers
from evit_nas.analysis.results import BlockHeads


@torch.inference_mode()
def head_similarity(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> list[BlockHeads]:
    """The similarity of heads in each layer of attention that has several.

    Args:
        model: in eval mode.
        batches: (B, C, H, W) images, as the network wants them, with labels that are not looked at.
    """
    layers = [mixer for mixer in mixers(model) if mixer.heads > 1]
    read: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(f"{layer.path}.proj").register_forward_pre_hook(
            lambda _, inputs, path=layer.path: read.__setitem__(path, inputs[0])
        )
        for layer in layers
    ]
    sums = {layer.path: torch.zeros(layer.heads, dtype=torch.float64) for layer in layers}
    seen = 0
    try:
        for images, _ in batches:
            model(images)
            seen += len(images)
            for layer in layers:
                outputs = by_head(read[layer.path], layer.heads, len(images))
                sums[layer.path] += nearest(outputs).double().sum(0)
    finally:
        for hook in hooks:
            hook.remove()
    return [
        BlockHeads(block=layer.path, stage=layer.stage, similarity=tuple((sums[layer.path] / seen).tolist()))
        for layer in layers
    ]


def by_head(outputs: Tensor, heads: int, images: int) -> Tensor:
    """(images, heads, values) of what a projection reads: (B, h D, H, W) maps, or (B windows, N, h D) tokens."""
    if outputs.ndim == 4:
        return outputs.reshape(images, heads, -1)
    tokens = outputs.reshape(images, -1, heads, outputs.shape[-1] // heads)
    return tokens.transpose(1, 2).flatten(2)


def nearest(outputs: Tensor) -> Tensor:
    """(B, h) largest cosine similarity of each head with another, of (B, h, values); a head of zeros is like none."""
    units = F.normalize(outputs.float(), dim=2)
    similar = units @ units.transpose(1, 2)  # (B, h, h)
    itself = torch.eye(similar.shape[1], dtype=torch.bool)
    return similar.masked_fill(itself, -1.0).amax(2)
