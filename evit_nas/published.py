"""Published trainings of EfficientViTs and of their nearest relatives: what is known where nobody here has trained.

top-1 in %. m0 to m5: evaluation in the README of microsoft/Cream, EfficientViT, at 4a13c40 (300 epochs, 224 px, no
distillation). The relatives share the 16-fold stem, three stages, BatchNorm and FFNs of ratio 2: SHViT (arXiv
2401.16456) by timm's results, with one head and no cascade; CascadedViT (arXiv 2511.14111) by its own README, which is
m0, m2, m4 and m5 with another FFN. ImageNet-100: a third party's training of m0 to m5 by one seed, 47 to 69 epochs
(SU-Intelligent-systems-Lab/Efficient-ViTs). The ablation: m4 without cascade lost 1.5 points (arXiv 2305.07027,
table 6, as two third-party summaries give it).
"""

from __future__ import annotations

from typing import NamedTuple

from evit_nas.regime import IMAGENET, Regime

IMAGENET_1K, IMAGENET_100 = "imagenet-1k", "imagenet-100"
REGIMES = {IMAGENET_1K: IMAGENET, IMAGENET_100: Regime(images=126_689, classes=100)}

TOP1 = {
    IMAGENET_1K: {"m0": 63.296, "m1": 68.356, "m2": 70.786, "m3": 73.390, "m4": 74.266, "m5": 77.124},
    IMAGENET_100: {"m0": 70.66, "m1": 76.70, "m2": 75.14, "m3": 75.40, "m4": 75.12, "m5": 77.22},
}
"""Data -> name of a network of the paper -> top-1 in %."""

WITHOUT_CASCADE = ("m4", -1.5)  # points


class Relative(NamedTuple):
    """A network of another paper, known by its size alone."""

    name: str
    params_m: float
    """Millions of parameters, classifier included."""
    macs_m: float
    """Millions of MACs at 224 px."""
    last_width: int
    """Inputs of the classifier of 1000 classes."""
    top1: float
    """On ImageNet-1k, in %."""


RELATIVES = (
    Relative("cascadedvit_s", 1.9, 67, 192, 62.0),
    Relative("cascadedvit_m", 3.5, 173, 224, 69.9),
    Relative("cascadedvit_l", 7.0, 249, 384, 73.0),
    Relative("cascadedvit_xl", 9.8, 366, 384, 75.5),
    Relative("shvit_s1", 6.33, 241, 448, 72.780),
    Relative("shvit_s2", 11.48, 366, 448, 75.184),
    Relative("shvit_s3", 14.25, 601, 448, 77.356),
)
