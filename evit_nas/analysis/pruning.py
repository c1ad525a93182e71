"""A trained network cut to a smaller architecture by the importance of its channels, as weights to train on from.

First every row of channels is brought into the order of its importance, which changes no answer of the network. Then
the channels from the first on are taken over (`network/transfer.py`), and they are the important ones. What belongs
together keeps one order: a query channel and its key channel; a value channel, the column of the projection that reads
it and, in a cascade, the channel of the next head's input that it is added to; and the channels of a stage's width in
all residual branches. Heads keep their number, each loses channels of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from evit_nas.analysis.channels import QKV, head_rows, mixers, stage_of
from evit_nas.analysis.results import Channels
from evit_nas.arch import ArchConfig, StageConfig
from evit_nas.errors import UsageError
from evit_nas.files import write_atomically, writing
from evit_nas.network.attention import LinearAttention
from evit_nas.network.layers import ConvNorm, LocalFfn, SqueezeExcite
from evit_nas.network.model import Downsample, EfficientViT, build
from evit_nas.network.saved import efficientvit, open_saved
from evit_nas.network.transfer import copy_common
from evit_nas.trained import ARCH, WEIGHTS
from evit_nas.training.checkpoint import save_weights
from evit_nas.yamlio import validate

_EQUAL = ("mixer", "heads", "cascade", "ffn_count")  # fields of a stage that a cut cannot change
_SMALLER = ("width", "depth", "qk_dim", "v_dim", "ffn_dim")


def prune_to(model: EfficientViT, arch: ArchConfig, channels: Sequence[Channels]) -> EfficientViT:
    """The network of `arch` with the most important channels and blocks of `model`, in eval mode.

    Args:
        model: in eval mode; left as it is.
        arch: nowhere larger than the network, with the same kinds of blocks; its image size, windows and query
            kernels may differ.
        channels: of `model`, as `taylor.importance` gives them.

    Raises:
        UsageError: `arch` is not a part of the network; names the field and both values.
    """
    _check(model.arch, arch)
    scores = {part.name: torch.tensor(part.importance, dtype=torch.float64) for part in channels}
    if not scores:
        raise UsageError("a network is cut by the importance of its channels, which needs data of its own classes.")
    pruned = build(arch, seed=0)
    copy_common(pruned, _shallower(by_importance(model, scores), arch, scores), range(arch.num_classes))
    return pruned.eval()


def _check(own: ArchConfig, arch: ArchConfig) -> None:
    problems = [
        f"{name} must be {getattr(own, name)}, got {getattr(arch, name)}"
        for name in ("in_channels", "num_classes")
        if getattr(arch, name) != getattr(own, name)
    ]
    for index, (ours, wanted) in enumerate(zip(own.stages, arch.stages, strict=True)):
        pairs = [(name, getattr(ours, name), getattr(wanted, name)) for name in (*_EQUAL, *_SMALLER)]
        if index:
            pairs.append(("merge_dim", own.merge_dim(index), arch.merge_dim(index)))
        for name, have, want in pairs:
            if want != have if name in _EQUAL else want > have:
                rule = f"{have}" if name in _EQUAL else f"at most {have}"
                problems.append(f"stages[{index}].{name} must be {rule}, got {want}")
        # a layer between the heads (`back`) would have to appear or to vanish
        if ours.cascaded and _fed_back(ours) != _fed_back(wanted):
            problems.append(f"stages[{index}].v_ratio must be {ours.v_ratio} in this cascade, got {wanted.v_ratio}")
    if any(have < want for have, want in zip(own.stem_widths, arch.stem_widths, strict=True)):
        problems.append(f"the stem must be at most {own.stem_widths} wide, got {arch.stem_widths}")
    if problems:
        raise UsageError(f"the network can only be cut to a part of itself: {'; '.join(problems)}.")


def _fed_back(stage: StageConfig) -> bool:
    """Whether values go into the next head's input as they are."""
    return stage.v_dim == stage.head_dim


@torch.no_grad()
def by_importance(model: EfficientViT, scores: Mapping[str, Tensor]) -> EfficientViT:
    """The same function as `model`, with its channels in the order of their importance, the first one first.

    Args:
        scores: the importance of each part's channels by the name of the part (`channels.parts`).
    """
    ordered = copy.deepcopy(model)
    trunks = _trunk_orders(ordered, scores)
    orders = [_order(scores[f"stem.{i}"]) for i in range(len(ordered.stem) - 1)]
    read = None  # the image's channels stay where they are
    for layer, written in zip(ordered.stem, [*orders, trunks[0]], strict=True):
        _reorder(layer, written, read)
        read = written
    for path, module in ordered.named_modules():
        trunk = trunks[stage_of(path)]
        if isinstance(module, LocalFfn):
            hidden = _order(scores[f"{path}.ffn"])
            _reorder(ordered.get_submodule(f"{path}.dw.fn"), trunk)
            _reorder(ordered.get_submodule(f"{path}.ffn.fn.expand"), hidden, trunk)
            _reorder(ordered.get_submodule(f"{path}.ffn.fn.project"), trunk, hidden)
        elif isinstance(module, Downsample):
            hidden = _order(scores[f"{path}.merge"])
            _reorder(module.expand, hidden, trunks[stage_of(path) - 1])
            _reorder(module.reduce, hidden)
            _reorder_gate(module.se, hidden, _order(scores[f"{path}.se"]))
            _reorder(module.project, trunk, hidden)
    for mixer in mixers(ordered):
        _reorder_mixer(ordered, mixer.path, ordered.arch.stages[mixer.stage], trunks[mixer.stage], scores)
    if ordered.num_classes:
        _take(cast(nn.Module, ordered.head.bn), trunks[-1])
        _take_columns(cast(nn.Linear, ordered.head.linear), trunks[-1])
    return ordered


def _order(scores: Tensor) -> Tensor:
    return scores.argsort(descending=True, stable=True)


def _trunk_orders(model: EfficientViT, scores: Mapping[str, Tensor]) -> list[Tensor]:
    """(width,) for each stage: the order of the channels between its blocks, within each head's where softmax reads."""
    orders = []
    for index, stage in enumerate(model.arch.stages):
        width = scores[f"stages.{index}"].clone()
        if stage.mixer != "softmax":
            orders.append(_order(width))
            continue
        groups = width.view(stage.heads, -1)
        if stage.cascaded and _fed_back(stage):  # the values of the head before are added to these channels
            for mixer in mixers(model):
                if mixer.stage == index:
                    for head in range(1, stage.heads):
                        groups[head] += scores[f"{mixer.path}.heads.{head - 1}.v"]
        orders.append(_within(_order(group) for group in groups))
    return orders


def _within(orders: Iterable[Tensor]) -> Tensor:
    """One order of channels that lie in groups side by side, of the orders in the groups."""
    start, placed = 0, []
    for order in orders:
        placed.append(order + start)
        start += len(order)
    return torch.cat(placed)


def _reorder_mixer(
    model: EfficientViT, path: str, stage: StageConfig, trunk: Tensor, scores: Mapping[str, Tensor]
) -> None:
    mixer, heads = model.get_submodule(path), range(stage.heads)
    # (head_dim,) each: the order of the channels that a head reads, counted from its first one
    inputs = [group - head * stage.head_dim for head, group in enumerate(trunk.view(stage.heads, -1))]
    pairs = [_order(scores[f"{path}.heads.{j}.q"] + scores[f"{path}.heads.{j}.k"]) for j in heads]
    values = [_order(scores[f"{path}.heads.{j}.v"]) for j in heads]
    if stage.cascaded and _fed_back(stage):
        values[:-1] = inputs[1:]  # value i is added to input i of the next head
    rows = [
        torch.cat([order + head_rows(stage, j)[kind].start for kind, order in zip(QKV, orders, strict=True)])
        for j, orders in enumerate(zip(pairs, pairs, values, strict=True))
    ]
    if stage.cascaded:
        for j in heads:
            head = f"{path}.heads.{j}"
            _reorder(model.get_submodule(f"{head}.qkv"), rows[j], inputs[j])
            _reorder(model.get_submodule(f"{head}.q_local"), pairs[j])
            if isinstance(back := model.get_submodule(f"{head}.back"), ConvNorm):
                _reorder(back, inputs[j + 1], values[j])
    elif isinstance(mixer, LinearAttention):
        # (h, d), (h, d) and (h, D): the layer has all heads' queries first, then all keys, then all values
        by_kind = torch.split(torch.stack(rows), [stage.qk_dim, stage.qk_dim, stage.v_dim], dim=1)
        _reorder(mixer.qkv, torch.cat([kind.flatten() for kind in by_kind]), trunk)
        _reorder(model.get_submodule(f"{path}.v_local.fn"), _within(values))
    else:
        qkv = cast(ConvNorm, mixer.qkv)
        _reorder(qkv, torch.cat(rows))
        by_head = qkv.conv.weight.chunk(stage.heads)  # each head reads its own inputs
        qkv.conv.weight.copy_(torch.cat([weight[:, order] for weight, order in zip(by_head, inputs, strict=True)]))
        _reorder(cast(ConvNorm, mixer.q_local), _within(pairs))
    _reorder(cast(ConvNorm, mixer.proj), trunk, _within(values))


def _reorder(layer: nn.Module, written: Tensor, read: Tensor | None = None) -> None:
    """Brings the outputs of a convolution, and its inputs where they are given, into an order; depthwise: both."""
    assert isinstance(layer, ConvNorm)
    _take(layer.conv, written)
    _take(layer.bn, written)
    if read is not None:
        _take_columns(layer.conv, read)


def _reorder_gate(gate: SqueezeExcite, trunk: Tensor, hidden: Tensor) -> None:
    for layer, written, read in ((gate.reduce, hidden, trunk), (gate.expand, trunk, hidden)):
        _take(layer, written)
        _take_columns(layer, read)


def _take(layer: nn.Module, order: Tensor) -> None:
    for tensor in (*layer.parameters(recurse=False), *layer.buffers(recurse=False)):
        if tensor.ndim:  # num_batches_tracked has no channels
            tensor.copy_(tensor[order])


def _take_columns(layer: nn.Conv2d | nn.Linear, order: Tensor) -> None:
    layer.weight.copy_(layer.weight[:, order])


def _shallower(model: EfficientViT, arch: ArchConfig, scores: Mapping[str, Tensor]) -> EfficientViT:
    """`model` without its least important blocks, in place; those that stay keep their order."""
    for index, stage in enumerate(arch.stages):
        path = f"stages.{index}.blocks"
        blocks = cast(nn.Sequential, model.get_submodule(path))
        if stage.depth < len(blocks):
            found = [_of_block(f"{path}.{number}.", scores) for number in range(len(blocks))]
            kept = sorted(_order(torch.tensor(found))[: stage.depth].tolist())
            model.stages[index].blocks = nn.Sequential(*(blocks[number] for number in kept))
    depths = [
        own.model_copy(update={"depth": to.depth}) for own, to in zip(model.arch.stages, arch.stages, strict=True)
    ]
    model.arch = model.arch.model_copy(update={"stages": tuple(depths)})
    return model


def _of_block(start: str, scores: Mapping[str, Tensor]) -> float:
    """The importance of a block: of all channels inside it."""
    return float(sum(part.sum() for name, part in scores.items() if name.startswith(start)))


def write_start(
    network: str, arch: ArchConfig, channels: Sequence[Channels], image_size: int | tuple[int, int], folder: Path
) -> Path:
    """Cuts the network that `network` names and writes what a training can start from; returns the file of weights.

    `arch` is taken with the channels and classes of the network.

    Args:
        network: what `open_saved` takes.
        image_size: that it is trained at, which weights alone do not tell.
        folder: gets model.safetensors and arch.yaml.

    Raises:
        UsageError: there is no such network, `arch` is not a part of it, or the folder cannot be written.
    """
    model = efficientvit(open_saved(network))
    model.set_input_size(image_size)
    own = {name: getattr(model.arch, name) for name in ("image_size", "in_channels", "num_classes")}
    pruned = prune_to(model, validate(ArchConfig, arch.model_dump() | own, "the architecture to cut to"), channels)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(folder / WEIGHTS, pruned.state_dict(), {"evit_nas.arch": pruned.arch.model_dump_json()})
        write_atomically(folder / ARCH, pruned.arch.to_yaml(f"cut from {network}"))
    return folder / WEIGHTS
