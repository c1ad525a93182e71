"""How good a network is on the validation images, which the processes of a training share out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Key = TypeVar("Key")  # what a network is called among others


def share_statistics(model: nn.Module, accelerator: Any) -> None:
    """Sets running statistics of BatchNorm to their mean over processes, which each see other images."""
    if accelerator.num_processes > 1:
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(accelerator.reduce(buffer, "mean"))


@torch.no_grad()
def validate(
    networks: Mapping[Key, nn.Module],
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    accelerator: Any,
    classes: int,
    unreadable: set[int],
) -> dict[Key, dict[str, Any]] | None:
    """Of each network top-1 and top-5 in percent, mean cross-entropy in nats and number of images.

    All of them answer a batch before the next one is decoded, which takes longer than an answer.

    Args:
        unreadable: is given the indices of this process's images that cannot be read.

    Returns:
        None if no image can be read.
    """
    device = accelerator.device
    totals = torch.zeros(len(networks), 4, dtype=torch.float64)  # images, right, among five, loss
    for network in networks.values():
        network.eval()
    for images, labels, missing in batches:
        known = labels >= 0
        unreadable.update(missing[~known].tolist())
        if not known.any():  # linear attention, for one, takes no batch of none
            continue
        labels = labels[known].to(device)
        images = images[known].to(device, memory_format=torch.channels_last)
        counted = torch.stack([_counted(network, images, labels, accelerator) for network in networks.values()])
        totals += counted.cpu().double()  # in this order: not every accelerator knows float64
    for network in networks.values():
        network.train()
    totals = accelerator.reduce(totals.float().to(device), "sum").cpu().double()
    if not totals[0, 0]:
        return None
    return {
        name: {
            "top1": 100 * right / count,
            "top5": 100 * five / count if classes > 5 else None,
            "loss": loss / count,
            "images": int(count),
        }
        for name, (count, right, five, loss) in zip(networks, totals.tolist(), strict=True)
    }


def _counted(network: nn.Module, images: Tensor, labels: Tensor, accelerator: Any) -> Tensor:
    """(4,) images, right answers, right ones among the first five, and the sum of the losses."""
    with accelerator.autocast():
        logits = network(images).float()  # (B, classes)
    ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]  # (B, 5)
    right, five = ranked[:, 0].sum(), ranked.any(1).sum()
    loss = F.cross_entropy(logits, labels, reduction="sum")
    return torch.stack([torch.tensor(len(labels), device=labels.device), right, five, loss])


def merit(figures: Mapping[str, Any]) -> tuple[float, float]:
    """Larger for the better of two validations: accuracy, then loss."""
    return figures["top1"], -figures["loss"]
