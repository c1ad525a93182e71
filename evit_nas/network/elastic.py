"""One set of weights for every network of a space: what a member computes with are views of shared tensors.

A member is an ordinary EfficientViT whose tensors are cut from shared ones, so there is no second forward pass that
could differ from the first, and to extract a member is to copy what it was computing with all along. Narrower is a
prefix (channels, hidden channels, queries, keys, values), shallower the leading blocks, a smaller kernel the centre of
a larger one, a smaller window the near offsets of a larger one.

Heads that are contiguous groups of channels do not nest: a wider stage would shift the channels of every head but the
first. So the shared channel i * h + j is channel i of head j: under a fixed number of heads each head keeps its
channels whatever the width, and members have them in another order than the shared tensors, one permutation for a
stage. The number of heads decides what each head reads, therefore queries, keys and values belong to it alone; the
output projection serves all of them. Cascade on and off share weights; their BatchNorms, which see other statistics, do
not. Linear attention reads all channels in every head and shares nothing with softmax.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from evit_nas.arch import LINEAR_V_KERNEL, SE_RATIO, ArchConfig, StageConfig, round_to
from evit_nas.network.model import EfficientViT, build
from evit_nas.space import SearchSpace

SKELETONS = 64  # members whose modules are kept: an epoch meets the largest and the smallest in every step


class Lead(NamedTuple):
    """The leading entries of an axis; with `heads`, those of the first head first, then the second's, and so on."""

    size: int
    heads: int = 1


class Centre(NamedTuple):
    """The middle entries of an axis, of a kernel."""

    size: int


class Piece(NamedTuple):
    """What a member takes of one shared tensor: a span of each of its axes."""

    key: str
    spans: tuple[Lead | Centre, ...]

    def of(self, shared: Tensor) -> Tensor:
        """A view of `shared`; an axis that is ordered by heads has become two of them."""
        for axis in reversed(range(len(self.spans))):  # from the last one, as these may split
            span = self.spans[axis]
            start = (shared.shape[axis] - span.size) // 2 if isinstance(span, Centre) else 0
            shared = shared.narrow(axis, start, span.size)
            if isinstance(span, Lead) and span.heads > 1:
                shared = torch.unflatten(shared, axis, [-1, span.heads]).transpose(axis, axis + 1)
        return shared


Pieces = dict[str, list[Piece]]


class Elastic(nn.Module):
    """The shared weights of a space, and every network of it.

    Args:
        space: whose networks these are.
        seed: of the initial weights, which are those that the space's largest networks would begin with; None leaves
            zeros, to be loaded into.
    """

    def __init__(self, space: SearchSpace, seed: int | None = 0) -> None:
        super().__init__()
        self.space = space
        corners = list(corners_of(space))
        shapes: dict[str, tuple[int, ...]] = {}
        for piece in itertools.chain.from_iterable(itertools.chain(*pieces_of(arch).values()) for arch in corners):
            spans = [span.size for span in piece.spans]
            known = shapes.get(piece.key, (0,) * len(spans))
            shapes[piece.key] = tuple(map(max, known, spans))
        self.shared = nn.ParameterDict({_plain(key): torch.zeros(shape) for key, shape in shapes.items()})
        self._skeletons: OrderedDict[str, EfficientViT] = OrderedDict()
        if seed is None:
            return
        for arch in reversed(corners):  # the first one, the widest, has the last word
            self._put(arch, build(arch, seed).state_dict())

    def weights(self, arch: ArchConfig) -> dict[str, Tensor]:
        """The tensors of a member by their names in it; gradients flow through them into the shared ones."""
        return {name: self._joined(pieces) for name, pieces in pieces_of(arch).items()}

    def forward(self, arch: ArchConfig, x: Tensor) -> Tensor:
        """(B, classes) logits of a member of the space; its BatchNorms use the statistics of this batch."""
        skeleton = self._skeletons.pop(arch.key, None) or _skeleton(arch)
        self._skeletons[arch.key] = skeleton  # at the end: dropped is what was unused for longest
        if len(self._skeletons) > SKELETONS:
            self._skeletons.popitem(last=False)
        shapes = {name: parameter.shape for name, parameter in skeleton.named_parameters()}
        # joins what is in parts: axes that count head by head, and the rows of `_joined`
        weights = {name: tensor.reshape(shapes[name]) for name, tensor in self.weights(arch).items()}
        logits: Tensor = functional_call(skeleton, weights, (x,))
        return logits

    @torch.no_grad()
    def extract(self, arch: ArchConfig) -> EfficientViT:
        """A member with weights of its own, on the processor and in training mode.

        Its running statistics have seen nothing: none of the space would be right for it (`supernet.recalibrate`).
        """
        model = build(arch, seed=0).to(next(self.parameters()).dtype)
        weights = self.weights(arch)
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name].reshape(parameter.shape))
        return model

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay must leave alone: the attention biases."""
        return {name for name, _ in self.named_parameters() if name.endswith("/table")}

    def _joined(self, pieces: Sequence[Piece]) -> Tensor:
        if len(pieces) == 1:
            return pieces[0].of(self.shared[_plain(pieces[0].key)])
        parts = [piece.of(self.shared[_plain(piece.key)]) for piece in pieces]
        # as rows, for kernels have more axes than two; `forward` and `extract` give them the parameter's shape
        return torch.cat([part.flatten(0, -2) if part.ndim > 1 else part for part in parts])

    @torch.no_grad()
    def _put(self, arch: ArchConfig, weights: Mapping[str, Tensor]) -> None:
        """Sets the shared tensors to what a member has, as far as it reaches."""
        for name, pieces in pieces_of(arch).items():
            views = [piece.of(self.shared[_plain(piece.key)]) for piece in pieces]
            parts = torch.split(weights[name].flatten(), [view.numel() for view in views])
            for view, part in zip(views, parts, strict=True):
                view.copy_(part.reshape(view.shape))


def _plain(key: str) -> str:
    """torch allows no dots in the name of a parameter."""
    return key.replace(".", "/")


def _skeleton(arch: ArchConfig) -> EfficientViT:
    """A member without weights and without memory: every batch is normalised by itself."""
    with torch.device("meta"):
        model = EfficientViT(arch)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return model


def corners_of(space: SearchSpace) -> Iterator[ArchConfig]:
    """Networks that together reach the end of every shared tensor; the first one is the widest.

    Everything at its greatest, for each choice of what decides which tensors there are: stages side by side, because
    nothing but the width of one is seen by the next, and the widest stages go together.
    """
    largest = space.largest()
    stages = []
    for choices, top in zip(space.stages, largest.stages, strict=True):
        # head by head: of 5 and [7, 3, 3, 3] neither reaches the end of every head's tensor; a list may be longer than
        # there are heads, and what none of them uses does not count
        most = max(choices.heads)
        kernels = tuple(map(max, zip(*(choices.kernels(each)[:most] for each in choices.q_kernels), strict=True)))
        # the largest of all, and of those but 1: a cascade has `back` only where values and inputs differ in width
        values = {max(choices.v_ratio), max(choices.v_ratio, key=lambda ratio: (ratio != 1, ratio))}
        deciding = itertools.product(choices.heads, choices.mixer, choices.cascade, sorted(values))
        found = {
            _tensors(stage): stage
            for stage in (
                StageConfig.model_validate(
                    top.model_dump()
                    | {
                        "width": choices.snapped(choices.width[-1], heads),
                        "heads": heads,
                        "mixer": mixer,
                        "cascade": cascade,
                        "q_kernels": kernels,
                        "v_ratio": v_ratio,
                    }
                )
                for heads, mixer, cascade, v_ratio in deciding
            )
        }
        stages.append(sorted(found.values(), key=lambda stage: -stage.width))
    for chosen in itertools.zip_longest(*stages):
        together = [stage or own[0] for stage, own in zip(chosen, stages, strict=True)]
        yield ArchConfig.model_validate(largest.model_dump() | {"stages": together})
    for ratio in space.stem_ratio:  # a stem with a lower ratio may be wider at first: it is rounded to multiples of 8
        yield largest.model_copy(update={"stem_ratio": ratio})


def _tensors(stage: StageConfig) -> tuple[object, ...]:
    """What decides which tensors the mixer of a stage has; a ratio other than 1 has those that return to the input."""
    if stage.mixer == "none":
        return ()
    return stage.mixer, stage.heads, stage.cascaded, stage.v_ratio


def pieces_of(arch: ArchConfig) -> Pieces:
    """For each parameter of a member, by its name there: the pieces of shared tensors that it consists of, in order."""
    found: Pieces = {}
    # head by head only in softmax stages: elsewhere no head has channels of its own
    widths = [Lead(stage.width, stage.heads if stage.mixer == "softmax" else 1) for stage in arch.stages]
    stem = [*map(Lead, (arch.in_channels, *arch.stem_widths[:-1])), widths[0]]
    for index, (before, after) in enumerate(itertools.pairwise(stem)):
        found |= _conv_norm(f"stem.{index}", [after], before, *KERNEL)
    for index, stage in enumerate(arch.stages):
        if index:
            found |= _downsample(arch, index, widths[index - 1], widths[index])
        for block in range(stage.depth):
            name = f"stages.{index}.blocks.{block}"
            for part, number in itertools.product(("before", "after"), range(stage.ffn_count)):
                found |= _local_ffn(f"{name}.{part}.{number}", widths[index], stage.ffn_dim)
            if stage.mixer != "none":
                mixer = _linear if stage.mixer == "linear" else _cascade if stage.cascaded else _parallel
                found |= mixer(f"{name}.mixer.fn", stage, widths[index], arch.window_side(index))
    if arch.num_classes:
        classes, last = Lead(arch.num_classes), widths[-1]
        found |= {name: [Piece(name, (last,))] for name in ("head.bn.weight", "head.bn.bias")}
        found["head.linear.weight"] = [Piece("head.linear.weight", (classes, last))]
        found["head.linear.bias"] = [Piece("head.linear.bias", (classes,))]
    return found


KERNEL = (Lead(3), Lead(3))  # of stem, token interaction and downsampling


class Rows(NamedTuple):
    """Output channels of a convolution that come from shared tensors of one name."""

    key: str
    span: Lead
    norm: str  # of the BatchNorm's tensors


def _conv_norm(name: str, rows: Sequence[Lead | Rows], *rest: Lead | Centre) -> Pieces:
    """A ConvNorm `name`: its output channels by their origin, then the spans of the other axes of its weight."""
    known = [row if isinstance(row, Rows) else Rows(name, row, name) for row in rows]
    norms = {part: [Piece(f"{row.norm}.bn.{part}", (row.span,)) for row in known] for part in ("weight", "bias")}
    return {
        f"{name}.conv.weight": [Piece(f"{row.key}.conv.weight", (row.span, *rest)) for row in known],
        **{f"{name}.bn.{part}": pieces for part, pieces in norms.items()},
    }


def _local_ffn(name: str, width: Lead, hidden: int) -> Pieces:
    return {
        **_conv_norm(f"{name}.dw.fn", [width], *KERNEL),
        **_conv_norm(f"{name}.ffn.fn.expand", [Lead(hidden)], width),
        **_conv_norm(f"{name}.ffn.fn.project", [width], Lead(hidden)),
    }


def _downsample(arch: ArchConfig, index: int, before: Lead, after: Lead) -> Pieces:
    name, hidden = f"stages.{index}.downsample", Lead(arch.merge_dim(index))
    squeezed = Lead(round_to(hidden.size * SE_RATIO, 8))
    return {
        **_local_ffn(f"{name}.before", before, arch.stages[index - 1].ffn_dim),
        **_conv_norm(f"{name}.expand", [hidden], before),
        **_conv_norm(f"{name}.reduce", [hidden], *KERNEL),
        f"{name}.se.reduce.weight": [Piece(f"{name}.se.reduce.weight", (squeezed, hidden))],
        f"{name}.se.reduce.bias": [Piece(f"{name}.se.reduce.bias", (squeezed,))],
        f"{name}.se.expand.weight": [Piece(f"{name}.se.expand.weight", (hidden, squeezed))],
        f"{name}.se.expand.bias": [Piece(f"{name}.se.expand.bias", (hidden,))],
        **_conv_norm(f"{name}.project", [after], hidden),
        **_local_ffn(f"{name}.after", after, arch.stages[index].ffn_dim),
    }


def _cascade(name: str, stage: StageConfig, width: Lead, side: int) -> Pieces:
    found: Pieces = {}
    key, norm = _softmax_keys(name, stage)
    for head, kernel in enumerate(stage.used_q_kernels):
        own = f"{name}.heads.{head}"
        rows = [Rows(f"{key}.{part}.{head}", count, f"{norm}.{part}.{head}") for part, count in _qkv(stage)]
        found |= _conv_norm(f"{own}.qkv", rows, Lead(stage.head_dim))
        local = Rows(f"{key}.q_local.{head}", Lead(stage.qk_dim), f"{norm}.q_local.{head}")
        found |= _conv_norm(f"{own}.q_local", [local], Centre(kernel), Centre(kernel))
        if head < stage.heads - 1 and stage.v_dim != stage.head_dim:
            back = Rows(f"{key}.back.{head}", Lead(stage.head_dim), f"{norm}.back.{head}")
            found |= _conv_norm(f"{own}.back", [back], Lead(stage.v_dim))
    return found | _softmax_ends(name, stage, width, side)


def _parallel(name: str, stage: StageConfig, width: Lead, side: int) -> Pieces:
    key, norm = _softmax_keys(name, stage)
    heads, kernel = range(stage.heads), Centre(stage.used_q_kernels[0])
    # q, k and v of the first head, then of the next: the groups of ParallelGroupAttention.qkv
    rows = [
        Rows(f"{key}.{part}.{head}", count, f"{norm}.{part}.{head}") for head in heads for part, count in _qkv(stage)
    ]
    local = [Rows(f"{key}.q_local.{head}", Lead(stage.qk_dim), f"{norm}.q_local.{head}") for head in heads]
    return {
        **_conv_norm(f"{name}.qkv", rows, Lead(stage.head_dim)),
        **_conv_norm(f"{name}.q_local", local, kernel, kernel),
        **_softmax_ends(name, stage, width, side),
    }


def _softmax_keys(name: str, stage: StageConfig) -> tuple[str, str]:
    """What the tensors of this number of heads are called, and those of its BatchNorms."""
    key = f"{name}.softmax{stage.heads}"
    return key, f"{key}.{'cascade' if stage.cascaded else 'parallel'}"


def _qkv(stage: StageConfig) -> tuple[tuple[str, Lead], ...]:
    """Queries, keys and values of one head, as the network has them in one convolution."""
    return ("q", Lead(stage.qk_dim)), ("k", Lead(stage.qk_dim)), ("v", Lead(stage.v_dim))


def _softmax_ends(name: str, stage: StageConfig, width: Lead, side: int) -> Pieces:
    """Attention biases, and the projection that all numbers of heads share."""
    key, norm = _softmax_keys(name, stage)
    values = Lead(stage.heads * stage.v_dim, stage.heads)
    near = (Lead(side), Lead(side))  # tables are by |dy| and |dx|: the near offsets lead
    return {
        f"{name}.bias.table": [Piece(f"{key}.bias.{head}.table", near) for head in range(stage.heads)],
        **_conv_norm(f"{name}.proj", [Rows(f"{name}.softmax.proj", width, f"{norm}.proj")], values),
    }


def _linear(name: str, stage: StageConfig, width: Lead, side: int) -> Pieces:
    key, heads = f"{name}.linear{stage.heads}", range(stage.heads)
    # the queries of all heads, then all keys, then all values, as LinearAttention splits them
    rows = [
        Rows(f"{key}.{part}.{head}", count, f"{key}.{part}.{head}") for part, count in _qkv(stage) for head in heads
    ]
    local = [Rows(f"{key}.v_local.{head}", Lead(stage.v_dim), f"{key}.v_local.{head}") for head in heads]
    values = Lead(stage.heads * stage.v_dim, stage.heads)
    side_of_values = Lead(LINEAR_V_KERNEL)
    return {
        **_conv_norm(f"{name}.qkv", rows, width),
        **_conv_norm(f"{name}.v_local.fn", local, side_of_values, side_of_values),
        **_conv_norm(f"{name}.proj", [Rows(f"{name}.linear.proj", width, f"{key}.proj")], values),
    }
