"""What the score says on ImageNet of networks that it does not know: the paper's six, seven relatives, the cascade.

    python benchmarks/imagenet.py

Each of m0 to m5 is left out of all evidence in turn (its trainings on other data too); relatives of other papers are
predicted by their sizes. Then what the paper's ablation and the third party's ImageNet-100 say, which the score knows.
"""

from __future__ import annotations

from evit_nas.accuracy.evidence import without_cascade
from evit_nas.accuracy.imagenet import imagenet_card
from evit_nas.accuracy.learned import LearnedAccuracy
from evit_nas.arch import PRESETS, ArchConfig
from evit_nas.latency.machine import probe
from evit_nas.published import IMAGENET_100, REGIMES, TOP1
from evit_nas.regime import IMAGENET


def main() -> None:
    print(f"machine: {probe()}", flush=True)
    card = imagenet_card()
    print(f"{'network':14} {'published':>9} {'predicted':>9}   80 % interval")
    for one in (*card.presets, *card.relatives):
        holds = "" if one.holds else "  missed"
        print(f"{one.name:14} {one.published:9.1f} {one.predicted:9.1f}   {one.low:.1f} to {one.high:.1f}{holds}")
    worst = max(abs(one.predicted - one.published) for one in card.presets)
    order = "the published order" if card.ordered else "another order than published"
    print(f"m0 to m5: {order}, {card.spread:.1f} points apart (published 13.8), errors up to {worst:.1f}")
    print(f"relatives: {card.rmse:.2f} points off (root mean square)")

    learned = LearnedAccuracy.under(IMAGENET)
    papers = [ArchConfig.preset(name) for name in PRESETS]
    with_, without = (learned.intervals(archs)[0] for archs in (papers, [without_cascade(arch) for arch in papers]))
    lost = ", ".join(f"{name} {points:+.1f}" for name, points in zip(PRESETS, without - with_, strict=True))
    print(f"without cascade: {lost} (the paper: m4 -1.5)")
    tenth = LearnedAccuracy(REGIMES[IMAGENET_100], IMAGENET_100, learned.predictor, learned.known)
    for name, value in zip(PRESETS, tenth.intervals(papers)[0], strict=True):
        print(f"ImageNet-100: {name} {value:.1f}, trained by a third party {TOP1[IMAGENET_100][name]:.1f}")


if __name__ == "__main__":
    main()
