"""Writes the deploy ONNX of an architecture directly: no torch, no tracing, tens of milliseconds.

The tensors are those of `deploy.deploy_weights`; without them the graph gets seeded random ones, which time
the same. Only standard operators, so that other runtimes and converters read the file too.

ONNX Runtime's convolutions run on blocks of 16 channels (AVX-512), and at batch 1 every node costs about a
microsecond of cold cache whatever it does. So there are as few nodes around the convolutions as possible:
  - cascaded heads work on tokens, channels last: leaving the blocks for channels last costs no more than for
    channels first, windows are cut in long contiguous rows, and one product a head gives q, k and v;
  - a lone window of one image is a plain matrix, so that a product and its bias become one Gemm;
  - independent heads stay grouped convolutions up to their scores, with k and v from one of them;
  - a first convolution of 8 channels computes pairs of pixels: whole blocks instead of half-empty ones.

Shapes: B batch, C channels, (H, W) the map, S window side, N = S * S tokens, M windows of all images, h
heads, d query channels and D value channels a head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from evit_nas import __version__
from evit_nas.arch import LINEAR_EPS, LINEAR_V_KERNEL, SE_RATIO, ArchConfig, StageConfig, round_to
from evit_nas.errors import UsageError

OPSET = 17  # which the clients of docs/results/clients.md know
IR_VERSION = 8  # of the same age as the opset
# where a block is 8 channels (AVX2), pairs neither gain nor cost (docs/results/deploy.md)
PAIRED_WIDTH = 8  # half a block; 24 or 40 channels leave too little of theirs empty to pay for the pairs


def build_onnx(
    arch: ArchConfig,
    weights: Mapping[str, np.ndarray] | None = None,
    *,
    seed: int = 0,
    batch: int | None = 1,
) -> onnx.ModelProto:
    """The deploy graph of `arch`: "input" (B, in_channels, H, W) to "logits" (B, num_classes).

    Without classes the output is "features" (B, C3). The metadata hold the ArchConfig as JSON, its key and
    the package version.

    Args:
        weights: as from `deploy.deploy_weights`; None draws random ones from `seed`.
        batch: images a run; None leaves it open.

    Raises:
        UsageError: a tensor is missing or has another shape than the architecture needs.
    """
    model = onnx.ModelProto(
        ir_version=IR_VERSION,
        opset_import=[helper.make_opsetid("", OPSET)],
        producer_name="evit-nas",
        producer_version=__version__,
    )
    helper.set_model_props(
        model,
        {"evit_nas.arch": arch.model_dump_json(), "evit_nas.key": arch.key, "evit_nas.version": __version__},
    )
    model.graph.name = "EfficientViT"
    images = "batch" if batch is None else batch
    width = arch.stages[-1].width
    output, channels = ("logits", arch.num_classes) if arch.num_classes else ("features", width)
    input_shape = (images, arch.in_channels, *arch.input_size)
    model.graph.input.append(helper.make_tensor_value_info("input", TensorProto.FLOAT, input_shape))
    model.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, (images, channels)))

    graph = Graph(model.graph, weights, seed, one_image=batch == 1)
    x = _stem(graph, arch, "input")
    for index in range(len(arch.stages)):
        x = _stage(graph, arch, index, x)
    _head(graph, arch, x, output)
    return model


class Graph:
    """Writes nodes and constants; a value is known by its name, which starts with the part of the network it is in.

    ONNX Runtime calls what it fuses after a node or after its output, so both have the same name: a profile
    can then tell which part the time went to.
    """

    def __init__(
        self, proto: onnx.GraphProto, weights: Mapping[str, np.ndarray] | None, seed: int, one_image: bool
    ) -> None:
        self.one_image = one_image
        self.scope = ""  # path of the part being written, for example stages.1.blocks.0
        self._proto = proto
        self._weights = weights
        self._random = np.random.default_rng(seed)

    def weight(self, name: str, *shape: int) -> np.ndarray:
        """The given tensor `name`, checked, or a random one that keeps activations near their size."""
        if self._weights is None:
            value = self._random.random(shape, np.float32)
            value -= np.float32(0.5)
            # by the fan-in: activations that shrink from layer to layer end as denormals, which are slow
            value /= np.float32(math.prod(shape[1:]) ** 0.5)
            return value
        if name not in self._weights:
            raise UsageError(f"the weights have no tensor '{name}'; give those of deploy.deploy_weights.")
        value = np.asarray(self._weights[name], np.float32)
        if value.shape != shape:
            raise UsageError(f"weight '{name}' must have shape {shape} in this network, got {value.shape}.")
        return value

    def constant(self, array: np.ndarray) -> str:
        """A new initializer."""
        name = f"c{len(self._proto.initializer)}"
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        self._proto.initializer.add(name=name, data_type=kind, dims=array.shape, raw_data=array.tobytes())
        return name

    def ints(self, *values: int) -> str:
        """A new initializer of int64."""
        return self.constant(np.array(values, np.int64))

    def node(self, op: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """A new node with one output."""
        name = self._name(op)
        self._proto.node.append(helper.make_node(op, inputs, [output or name], name, **attributes))
        return output or name

    def split(self, x: str, axis: int, *sizes: int) -> list[str]:
        """`x` cut along `axis`."""
        name = self._name("Split")
        parts = [f"{name}.{i}" for i in range(len(sizes))]
        self._proto.node.append(helper.make_node("Split", [x, self.ints(*sizes)], parts, name, axis=axis))
        return parts

    def _name(self, op: str) -> str:
        return f"{self.scope}/{op}_{len(self._proto.node)}"

    def reshape(self, x: str, *shape: int) -> str:
        return self.node("Reshape", x, self.ints(*shape))

    def transpose(self, x: str, *axes: int) -> str:
        return self.node("Transpose", x, perm=axes)

    def conv(
        self,
        x: str,
        weight: np.ndarray,
        bias: np.ndarray,
        strides: tuple[int, int] = (1, 1),
        groups: int = 1,
        pads: tuple[int, ...] | None = None,
    ) -> str:
        """Convolution; `pads` are (top, left, bottom, right), by default "same"."""
        kernel = weight.shape[2:]
        return self.node(
            "Conv",
            x,
            self.constant(weight),
            self.constant(bias),
            kernel_shape=kernel,
            strides=strides,
            pads=pads or [side // 2 for side in kernel] * 2,
            group=groups,
        )

    def named_conv(
        self, x: str, name: str, in_chs: int, out_chs: int, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> str:
        """The convolution whose weight and bias are called `name`."""
        weight = self.weight(f"{name}.weight", out_chs, in_chs // groups, kernel, kernel)
        return self.conv(x, weight, self.weight(f"{name}.bias", out_chs), (stride, stride), groups)

    def linear(self, x: str, name: str, in_chs: int, out_chs: int) -> str:
        """The pointwise convolution `name` on channels-last tokens (..., in_chs)."""
        weight = self.weight(f"{name}.weight", out_chs, in_chs, 1, 1).reshape(out_chs, in_chs)
        product = self.node("MatMul", x, self.constant(weight.T))
        return self.node("Add", product, self.constant(self.weight(f"{name}.bias", out_chs)))


def _stem(graph: Graph, arch: ArchConfig, x: str) -> str:
    graph.scope = "stem"
    widths = (arch.in_channels, *arch.stem_widths)
    done = 0
    if widths[1] == PAIRED_WIDTH:
        x, done = _paired_stem(graph, widths, x), 2
    for i in range(done, 4):
        x = graph.named_conv(x, f"stem.{i}", widths[i], widths[i + 1], 3, stride=2)
        x = x if i == 3 else graph.node("Relu", x)
    return x


def _paired_stem(graph: Graph, widths: tuple[int, ...], x: str) -> str:
    """The first two stem convolutions; between them a pixel holds two of a row, (B, 2 * C, H, W / 2).

    Pair t is pixels 2t and 2t + 1, which see input columns 4t - 1 .. 4t + 1 and 4t + 1 .. 4t + 3. Column t of
    the second convolution sees pixels 2t - 1 .. 2t + 1: half of the pair before its own, and its own.
    """
    images, first, second = widths[:3]
    weight = graph.weight("stem.0.weight", first, images, 3, 3)
    bias = graph.weight("stem.0.bias", first)
    pair = np.zeros((2 * first, images, 3, 5), np.float32)
    # pixel 2t sees the first three columns of five, pixel 2t + 1 the last three
    pair[:first, ..., :3] = pair[first:, ..., 2:] = weight
    x = graph.node("Relu", graph.conv(x, pair, np.tile(bias, 2), (2, 4), pads=(1, 1, 1, 1)))

    weight = graph.weight("stem.1.weight", second, first, 3, 3)
    bias = graph.weight("stem.1.bias", second)
    both = np.zeros((second, 2 * first, 3, 2), np.float32)
    both[:, first:, :, 0] = weight[..., 0]  # of the pair before only its second pixel is seen
    both[:, :first, :, 1] = weight[..., 1]
    both[:, first:, :, 1] = weight[..., 2]
    return graph.node("Relu", graph.conv(x, both, bias, (2, 1), pads=(1, 1, 1, 0)))


def _head(graph: Graph, arch: ArchConfig, x: str, output: str) -> None:
    graph.scope = "head"
    x = graph.node("GlobalAveragePool", x)  # (B, C3, 1, 1)
    if not arch.num_classes:
        graph.node("Flatten", x, output=output)
        return
    weight = graph.constant(graph.weight("head.weight", arch.num_classes, arch.stages[-1].width))
    bias = graph.constant(graph.weight("head.bias", arch.num_classes))
    graph.node("Gemm", graph.node("Flatten", x), weight, bias, transB=1, output=output)


def _stage(graph: Graph, arch: ArchConfig, index: int, x: str) -> str:
    stage, windows = arch.stages[index], Windows(arch, index)
    if index:
        x = _downsample(graph, arch, index, x)
    for block in range(stage.depth):
        name = graph.scope = f"stages.{index}.blocks.{block}"
        for i in range(stage.ffn_count):
            x = _local_ffn(graph, stage, x, f"{name}.before.{i}")
        if stage.mixer != "none":
            mixer = f"{name}.mixer.fn"
            if stage.mixer == "linear":
                y = _linear_attention(graph, stage, arch.grids[index], x, mixer)
            elif stage.cascaded:
                y = _cascaded_attention(graph, stage, windows, x, mixer)
            else:
                y = _parallel_attention(graph, stage, windows, x, mixer)
            y = graph.named_conv(y, f"{mixer}.proj", stage.heads * stage.v_dim, stage.width)
            x = graph.node("Add", y, x)
        for i in range(stage.ffn_count):
            x = _local_ffn(graph, stage, x, f"{name}.after.{i}")
    return x


def _local_ffn(graph: Graph, stage: StageConfig, x: str, name: str) -> str:
    width, hidden = stage.width, stage.ffn_dim
    x = graph.named_conv(x, f"{name}.dw", width, width, 3, groups=width)  # its residual is in the kernel: deploy.py
    y = graph.node("Relu", graph.named_conv(x, f"{name}.ffn.fn.expand", width, hidden))
    return graph.node("Add", graph.named_conv(y, f"{name}.ffn.fn.project", hidden, width), x)


def _downsample(graph: Graph, arch: ArchConfig, index: int, x: str) -> str:
    name = graph.scope = f"stages.{index}.downsample"
    before, after, hidden = arch.stages[index - 1], arch.stages[index], arch.merge_dim(index)
    reduced = round_to(hidden * SE_RATIO, 8)
    x = _local_ffn(graph, before, x, f"{name}.before")
    x = graph.node("Relu", graph.named_conv(x, f"{name}.expand", before.width, hidden))
    x = graph.node("Relu", graph.named_conv(x, f"{name}.reduce", hidden, hidden, 3, stride=2, groups=hidden))
    gate = graph.node("GlobalAveragePool", x)
    gate = graph.node("Relu", graph.named_conv(gate, f"{name}.se.reduce", hidden, reduced))
    gate = graph.node("Sigmoid", graph.named_conv(gate, f"{name}.se.expand", reduced, hidden))
    x = graph.named_conv(graph.node("Mul", x, gate), f"{name}.project", hidden, after.width)
    return _local_ffn(graph, after, x, f"{name}.after")


class Windows:
    """Cuts channels-last maps into attention windows, zero-padded right and bottom, and joins them again."""

    def __init__(self, arch: ArchConfig, stage: int) -> None:
        self.grid, self.side = arch.grids[stage], arch.window_side(stage)
        self.tokens = self.side**2
        self.rows, self.cols = (-(-length // self.side) for length in self.grid)
        self.padded = (self.rows * self.side, self.cols * self.side)
        self.single = self.rows * self.cols == 1

    def cut(self, graph: Graph, x: str, channels: int) -> str:
        """(B, H, W, C) to windows, (B, rows, cols, S, S * C); a single one stays as it is."""
        if self.single:
            return x
        if self.padded != self.grid:
            bottom, right = (whole - length for whole, length in zip(self.padded, self.grid, strict=True))
            # what stands before (B, H, W, C), then what stands behind
            x = graph.node("Pad", x, graph.ints(0, 0, 0, 0, 0, bottom, right, 0))
        x = graph.reshape(x, -1, self.rows, self.side, self.cols, self.side * channels)  # S * C in one: long rows
        return graph.transpose(x, 0, 1, 3, 2, 4)

    def join(self, graph: Graph, x: str, channels: int) -> str:
        """The inverse: windows of tokens (..., C) to (B, C, H, W)."""
        if not self.single:
            x = graph.reshape(x, -1, self.rows, self.cols, self.side, self.side * channels)
            x = graph.transpose(x, 0, 1, 3, 2, 4)
        x = graph.reshape(x, -1, *self.padded, channels)
        if self.padded != self.grid:
            # starts, ends, axes
            x = graph.node("Slice", x, graph.ints(0, 0), graph.ints(*self.grid), graph.ints(1, 2))
        return graph.transpose(x, 0, 3, 1, 2)


def _cascaded_attention(graph: Graph, stage: StageConfig, windows: Windows, x: str, name: str) -> str:
    """(B, C, H, W) to (B, h * D, H, W); tokens are (M, N, C), or (N, C) where one window is all there is."""
    dim, qk, v_dim, side, tokens = stage.head_dim, stage.qk_dim, stage.v_dim, windows.side, windows.tokens
    plain = windows.single and graph.one_image
    lead = (tokens,) if plain else (-1, tokens)
    axis = len(lead)  # of the channels
    swap = (1, 0) if plain else (0, 2, 1)
    bias = graph.weight(f"{name}.bias.value", stage.heads, tokens, tokens)
    x = windows.cut(graph, graph.transpose(x, 0, 2, 3, 1), stage.width)
    groups = graph.split(graph.reshape(x, *lead, stage.width), axis, *[dim] * stage.heads)
    feat, outs = groups[0], []
    for j, kernel in enumerate(stage.used_q_kernels):
        head = f"{name}.heads.{j}"
        if j > 0:
            if v_dim != dim:
                feat = graph.linear(feat, f"{name}.heads.{j - 1}.back", v_dim, dim)
            feat = graph.node("Add", groups[j], feat)
        qkv = graph.linear(feat, f"{head}.qkv", dim, 2 * qk + v_dim)
        q, k, v = graph.split(qkv, axis, qk, qk, v_dim)
        q = graph.transpose(graph.reshape(q, -1, side, side, qk), 0, 3, 1, 2)
        q = graph.named_conv(q, f"{head}.q_local", qk, qk, kernel, groups=qk)
        q = graph.reshape(graph.transpose(q, 0, 2, 3, 1), *lead, qk)
        # the scale is in q_local's weights: deploy.py
        scores = graph.node("MatMul", q, graph.transpose(k, *swap))  # (M, N, N)
        attn = graph.node("Softmax", graph.node("Add", scores, graph.constant(bias[j])), axis=-1)
        feat = graph.node("MatMul", attn, v)  # (M, N, D)
        outs.append(feat)
    out = graph.node("Relu", graph.node("Concat", *outs, axis=axis))
    return windows.join(graph, out, stage.heads * v_dim)


def _parallel_attention(graph: Graph, stage: StageConfig, windows: Windows, x: str, name: str) -> str:
    """(B, C, H, W) to (B, h * D, H, W)."""
    heads, dim, qk, v_dim = stage.heads, stage.head_dim, stage.qk_dim, stage.v_dim
    side, tokens, q_width = windows.side, windows.tokens, stage.heads * stage.qk_dim
    weight = graph.weight(f"{name}.qkv.weight", heads * (2 * qk + v_dim), dim, 1, 1)
    weight = weight.reshape(heads, 2 * qk + v_dim, dim, 1, 1)
    shift = graph.weight(f"{name}.qkv.bias", heads * (2 * qk + v_dim)).reshape(heads, 2 * qk + v_dim)
    bias = graph.weight(f"{name}.bias.value", heads, tokens, tokens)
    if not windows.single:
        x = windows.cut(graph, graph.transpose(x, 0, 2, 3, 1), stage.width)
        x = graph.transpose(graph.reshape(x, -1, side, side, stage.width), 0, 3, 1, 2)

    def project(part: slice) -> str:
        return graph.conv(x, weight[:, part].reshape(-1, dim, 1, 1), shift[:, part].reshape(-1), groups=heads)

    kernel = stage.used_q_kernels[0]
    q = graph.named_conv(project(slice(qk)), f"{name}.q_local", q_width, q_width, kernel, groups=q_width)
    q = graph.reshape(q, -1, heads, qk, tokens)
    kv = graph.reshape(project(slice(qk, None)), -1, heads, qk + v_dim, tokens)
    k, v = graph.split(kv, 2, qk, v_dim)
    scores = graph.node("MatMul", graph.transpose(q, 0, 1, 3, 2), k)  # (M, h, N, N)
    attn = graph.node("Softmax", graph.node("Add", scores, graph.constant(bias)), axis=-1)
    # a lone window is a map already, channels first; several go to `join`, which takes channels last
    if windows.single:
        out = graph.node("Relu", graph.node("MatMul", v, graph.transpose(attn, 0, 1, 3, 2)))  # (B, h, D, N)
        return graph.reshape(out, -1, heads * v_dim, side, side)
    out = graph.node("Relu", graph.node("MatMul", attn, graph.transpose(v, 0, 1, 3, 2)))  # (M, h, N, D)
    return windows.join(graph, graph.transpose(out, 0, 2, 1, 3), heads * v_dim)


def _linear_attention(graph: Graph, stage: StageConfig, grid: tuple[int, int], x: str, name: str) -> str:
    """(B, C, H, W) to (B, h * D, H, W)."""
    heads, qk, v_dim, tokens = stage.heads, stage.qk_dim, stage.v_dim, grid[0] * grid[1]
    qk_width, v_width = 2 * heads * qk, heads * v_dim
    weight = graph.weight(f"{name}.qkv.weight", qk_width + v_width, stage.width, 1, 1)
    shift = graph.weight(f"{name}.qkv.bias", qk_width + v_width)
    # queries and keys in one convolution, as both have a ReLU; values have none
    both = graph.node("Relu", graph.conv(x, weight[:qk_width], shift[:qk_width]))
    q, k = graph.split(graph.reshape(both, -1, 2 * heads, qk, tokens), 1, heads, heads)
    v = graph.conv(x, weight[qk_width:], shift[qk_width:])
    v = graph.named_conv(v, f"{name}.v_local", v_width, v_width, LINEAR_V_KERNEL, groups=v_width)  # its residual too
    v = graph.reshape(v, -1, heads, v_dim, tokens)
    context = graph.node("MatMul", v, graph.transpose(k, 0, 1, 3, 2))  # (B, h, D, d)
    total = graph.transpose(graph.node("ReduceSum", k, graph.ints(3)), 0, 1, 3, 2)  # (B, h, 1, d)
    norm = graph.node("Add", graph.node("MatMul", total, q), graph.constant(np.array(LINEAR_EPS, np.float32)))
    out = graph.node("Div", graph.node("MatMul", context, q), norm)  # (B, h, D, N)
    return graph.reshape(out, -1, v_width, *grid)
