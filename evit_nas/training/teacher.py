"""Distillation: a trained network judges the images that the student sees, and the student learns its answers too.

DeiT (arXiv 2012.12877) without its second classifier: one set of logits learns from the labels and from the teacher.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evit_nas.data.preprocessing import Preprocessing
from evit_nas.errors import UsageError
from evit_nas.network.saved import KNOWN_WHOLE, class_order, open_saved


class Teacher(nn.Module):
    """A trained network that reads what its student reads: frozen, always in eval mode.

    Maps (B, C, H, W) images as the student's `Preprocessing` normalises them to (B, classes) logits in the order of the
    student's classes. Images are brought to the size that the teacher was trained at, and grey ones to its channels.

    Args:
        network: takes images as `own` normalises them.
        order: for each class of the student its number among the outputs; None if they are the same.

    Raises:
        UsageError: the student sees colours in another number of channels than the teacher.
    """

    scale: Tensor
    shift: Tensor
    order: Tensor | None

    def __init__(
        self, network: nn.Module, own: Preprocessing, student: Preprocessing, order: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        if student.input_size[0] not in (1, own.input_size[0]):
            raise UsageError(
                f"a teacher must take images of the student's {student.input_size[0]} channels, this one takes "
                f"{own.input_size[0]}."
            )
        self.network = network.requires_grad_(False)
        self.channels, self.size = own.input_size[0], own.input_size[1:]
        mean, std, own_mean, own_std = (
            torch.tensor(values)[:, None, None] for values in (student.mean, student.std, own.mean, own.std)
        )
        # pixel = student's * std + mean; teacher's = (pixel - own_mean) / own_std
        self.register_buffer("scale", std / own_std)
        self.register_buffer("shift", (mean - own_mean) / own_std)
        self.register_buffer("order", None if order is None else torch.tensor(order))
        self.eval()

    def train(self, mode: bool = True) -> Teacher:
        """Stays in eval mode, whatever contains it."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        images = images.expand(-1, self.channels, -1, -1) * self.scale + self.shift  # (B, C of the teacher, H, W)
        if images.shape[2:] != self.size:
            images = F.interpolate(images, self.size, mode="bicubic", antialias=True)
        logits: Tensor = self.network(images)
        return logits if self.order is None else logits[:, self.order]


def open_teacher(text: str, classes: Sequence[str], student: Preprocessing) -> Teacher:
    """The trained network that `text` names (see `saved.KNOWN_WHOLE`), as a teacher.

    Args:
        classes: names of the student's outputs, in their order; the teacher's must be the same, in any order. Where it
            has no names, as those of timm:NAME, its outputs must be as many, and in this order.
        student: how the images that it will be given are normalised.

    Raises:
        UsageError: there is no such network, its classes are others, or nobody knows how it wants its images.
    """
    saved = open_saved(text)
    if saved.preprocessing is None:
        raise UsageError(
            f"{text}: weights alone do not tell how images are normalised. A teacher can be {KNOWN_WHOLE}."
        )
    order = None
    if saved.classes is not None:
        order = class_order(classes, saved.classes, f"the teacher {saved.name}")
    elif (outputs := int(getattr(saved.model, "num_classes", 0))) != len(classes):
        raise UsageError(f"the teacher {saved.name} must have the {len(classes)} classes of the data, got {outputs}.")
    return Teacher(saved.model, saved.preprocessing, student, order)


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets_loss: Tensor,
    *,
    alpha: float = 0.5,
    tau: float = 1.0,
    kind: Literal["soft", "hard"] = "soft",
) -> Tensor:
    """(1 - alpha) times the loss on the targets plus alpha times the one on the teacher's answers (DeiT, section 4).

        soft    tau² · KL(softmax(teacher / tau) ‖ softmax(student / tau)), mean over the images
        hard    cross-entropy with the teacher's decision

    DeiT's published code also divides the soft term by the number of classes, which its equation 2 does not.

    Args:
        student_logits: (B, classes).
        teacher_logits: (B, classes).
        targets_loss: a scalar, of the same batch.
        tau: temperature of the soft kind.

    Raises:
        ValueError: another kind, alpha outside 0 to 1, or a temperature that is not positive.
    """
    if not 0 <= alpha <= 1 or not 0 < tau < math.inf:
        raise ValueError(f"alpha must be from 0 to 1 and tau positive, got {alpha} and {tau}.")
    if kind == "soft":
        student, teacher = (F.log_softmax(logits / tau, dim=1) for logits in (student_logits, teacher_logits))
        # softened gradients go with 1 / tau²; the factor keeps their size (arXiv 1503.02531, section 2)
        taught = F.kl_div(student, teacher, reduction="batchmean", log_target=True) * tau**2
    elif kind == "hard":
        taught = F.cross_entropy(student_logits, teacher_logits.argmax(1))
    else:
        raise ValueError(f"kind must be soft or hard, got {kind}.")
    return (1 - alpha) * targets_loss + alpha * taught
