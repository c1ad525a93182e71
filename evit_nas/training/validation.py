"""How good a network is on the validation images, which the processes of a training share out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def share_statistics(model: nn.Module, accelerator: Any) -> None:
    """Sets running statistics of BatchNorm to their mean over processes, which each see other images."""
    if accelerator.num_processes > 1:
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(accelerator.reduce(buffer, "mean"))


@torch.no_grad()
def validate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    accelerator: Any,
    classes: int,
    unreadable: set[int],
) -> dict[str, Any] | None:
    """Top-1 and top-5 in percent, mean cross-entropy in nats and how many images; None if none can be read.

    Args:
        unreadable: is given the indices of this process's images that cannot be read.
    """
    device = accelerator.device
    totals = torch.zeros(4, dtype=torch.float64)  # images, right, among five, loss
    model.eval()
    for images, labels, missing in batches:
        known = labels >= 0
        unreadable.update(missing[~known].tolist())
        if not known.any():  # linear attention, for one, takes no batch of none
            continue
        labels = labels[known].to(device)
        with accelerator.autocast():
            logits = model(images[known].to(device, memory_format=torch.channels_last)).float()
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]  # (B, 5)
        right, five = ranked[:, 0].sum(), ranked.any(1).sum()
        loss = F.cross_entropy(logits, labels, reduction="sum")
        totals += torch.stack([torch.tensor(len(labels), device=device), right, five, loss]).double().cpu()
    model.train()
    count, right, five, loss = accelerator.reduce(totals.float().to(device), "sum").double().tolist()
    if not count:
        return None
    top5 = 100 * five / count if classes > 5 else None
    return {"top1": 100 * right / count, "top5": top5, "loss": loss / count, "images": int(count)}


def merit(figures: Mapping[str, Any]) -> tuple[float, float]:
    """Larger for the better of two validations: accuracy, then loss."""
    return figures["top1"], -figures["loss"]
