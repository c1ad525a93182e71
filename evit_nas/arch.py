"""ArchConfig: one EfficientViT as a frozen value, from YAML to checkpoint.

EfficientViT: Memory Efficient Vision Transformer with Cascaded Group Attention (arXiv 2305.07027). A network
is a stem of four stride-2 convolutions and three stages; every block is a sandwich of token interaction
(depthwise convolution) and FFN, a token mixer, and the same again. `preset("m0")` .. `preset("m5")` are the
paper's networks; everything else is a dimension of the search.

No torch here: an architecture can be read, checked, compared and written in milliseconds.
"""

from __future__ import annotations

import hashlib
import json
import math
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictInt, model_validator

from evit_nas.errors import UsageError, did_you_mean
from evit_nas.yamlio import read_yaml, shown, validate

STEM_STRIDE = 16  # four stride-2 convolutions
NUM_STAGES = 3
SE_RATIO = 0.25  # width of the squeeze-and-excitation in the downsamplings
LINEAR_V_KERNEL = 5  # depthwise kernel on the values of the linear mixer (arXiv 2205.14756, 3.1)
LINEAR_EPS = 1e-5  # keeps the linear mixer finite where all of a query's similarities are zero
WIDTH_STEP, MAX_WIDTH = 8, 2048


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"must be a number, got {shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(f"must be a number of ordinary size, got {shown(value)}") from None
    if not math.isfinite(number):
        raise ValueError(f"must be a finite number, got {shown(value)}")
    return number


def _kernels(value: Any) -> Any:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"must be a list of odd numbers, one for each head, got {shown(value)}")
    return tuple(value)


NUMBER = BeforeValidator(_number)
Kernel = Annotated[StrictInt, Field(ge=1, le=15)]


def parse_image_size(value: Any) -> Any:
    """One side or [height, width] in pixels, checked; equal sides become one number."""
    sides = list(value) if isinstance(value, list | tuple) else [value, value]
    for side in sides:
        # of other sides the stem's convolutions round up, `_grids` and cost.py down: 100 px are 7 tokens, or 6
        if isinstance(side, bool) or not isinstance(side, int) or side % STEM_STRIDE or not 64 <= side <= 512:
            raise ValueError(f"must be a multiple of 16 from 64 to 512, got {shown(side)}")
    if len(sides) != 2:
        raise ValueError(f"must be one side or [height, width], got {len(sides)} numbers")
    return sides[0] if sides[0] == sides[1] else tuple(sides)


def parse_stages(value: Any) -> Any:
    """A list of exactly three stages, as a tuple."""
    if not isinstance(value, list | tuple) or len(value) != NUM_STAGES:
        got = len(value) if isinstance(value, list | tuple) else shown(value)
        raise ValueError(f"must be a list of exactly {NUM_STAGES} stages, got {got}")
    return tuple(value)


def round_to(value: float, step: int) -> int:
    """The multiple of `step` nearest to `value` (halves up), at least `step`."""
    return max(step, step * int(value / step + 0.5))


@cache
def _grids(height: int, width: int) -> tuple[tuple[int, int], ...]:
    """(rows, columns) of tokens in each stage, for an input of that size; asked for often, of few sizes."""
    grids = [(height // STEM_STRIDE, width // STEM_STRIDE)]
    for _ in range(NUM_STAGES - 1):
        rows, cols = grids[-1]
        grids.append(((rows + 1) // 2, (cols + 1) // 2))  # a 3x3 convolution of stride 2 rounds up
    return tuple(grids)


class StageConfig(BaseModel):
    """One stage: `depth` blocks of `width` channels at one resolution."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    width: Annotated[StrictInt, Field(ge=WIDTH_STEP, le=MAX_WIDTH, multiple_of=WIDTH_STEP)]
    """Channels of the stage; divisible by 8 and by `heads`."""
    depth: Annotated[StrictInt, Field(ge=1, le=16)]
    """Number of blocks."""
    heads: Annotated[StrictInt, Field(ge=1, le=16)] = 4
    """Attention heads; each works on its own width / heads channels."""
    # ONNX Runtime is ten times slower at depthwise convolutions, here on the queries, of other than multiples of 4
    qk_dim: Annotated[StrictInt, Field(ge=4, le=128, multiple_of=4)] = 16
    """Query and key channels per head."""
    v_ratio: Annotated[float, Field(ge=0.25, le=4), NUMBER] = 1.0
    """Value channels per head as a multiple of width / heads (rounded to a multiple of 8 unless 1)."""
    ffn_ratio: Annotated[float, Field(ge=0.5, le=8), NUMBER] = 2.0
    """Hidden width of the FFNs as a multiple of `width` (rounded to a multiple of 8)."""
    cascade: StrictBool = True
    """Feed each head's output into the next head's input; off: all heads are computed together."""
    q_kernels: Annotated[
        tuple[Kernel, ...], Field(min_length=1, max_length=16), BeforeValidator(_kernels)
    ] = (5, 5, 5, 5)  # fmt: skip
    """Depthwise kernel on the queries, head by head, odd; heads computed together share the first one."""
    window: Annotated[StrictInt, Field(ge=1, le=64)] = 7
    """Side of the attention window in tokens; a smaller map is one window."""
    mixer: Literal["softmax", "linear", "none"] = "softmax"
    """softmax: (cascaded) group attention; linear: ReLU linear attention (arXiv 2205.14756); none."""
    ffn_count: Annotated[StrictInt, Field(ge=0, le=4)] = 1
    """The paper's sandwich N: pairs of depthwise convolution and FFN before, and again after, the mixer."""
    merge_ratio: Annotated[float, Field(ge=1, le=8), NUMBER] = 4.0
    """Hidden width of the downsampling into this stage as a multiple of the previous stage's width."""

    @model_validator(mode="after")
    def _check(self) -> StageConfig:
        if self.mixer != "none":
            if self.width % self.heads:
                step = math.lcm(WIDTH_STEP, self.heads)
                # the largest multiple within the limit: what a message offers must not be refused in its turn
                nearest = min(round_to(self.width, step), MAX_WIDTH // step * step)
                raise ValueError(
                    f"width must be divisible by heads, got width {self.width} with {self.heads} heads; "
                    f"the nearest width that is: {nearest}"
                )
            even = [k for k in self.q_kernels if k % 2 == 0]
            if even:
                listed = list(self.q_kernels)
                raise ValueError(f"q_kernels must be odd, got {even[0]} in {listed}; use {even[0] + 1}")
        if self.mixer == "softmax" and self.cascade and len(self.q_kernels) < self.heads:
            raise ValueError(
                f"q_kernels needs one kernel for each of the {self.heads} heads, got {list(self.q_kernels)}"
            )
        if self.mixer == "none" and self.ffn_count == 0:
            raise ValueError("a block must hold something: ffn_count is 0 and mixer is none; set one of them")
        return self

    @property
    def head_dim(self) -> int:
        """Input (and, in a cascade, output) channels of each head."""
        return self.width // self.heads

    @property
    def v_dim(self) -> int:
        """Value channels of each head."""
        # at 1 the paper's width, unrounded: any other would need a projection back (`CascadeHead.back`) in a cascade
        return self.head_dim if self.v_ratio == 1 else round_to(self.head_dim * self.v_ratio, 8)

    @property
    def ffn_dim(self) -> int:
        """Hidden channels of each FFN."""
        return round_to(self.width * self.ffn_ratio, 8)

    @property
    def cascaded(self) -> bool:
        """Whether heads really run one after another."""
        return self.mixer == "softmax" and self.cascade and self.heads > 1

    @property
    def used_q_kernels(self) -> tuple[int, ...]:
        """The query kernels that exist in the network: one a head in a cascade, one in all otherwise."""
        if self.mixer != "softmax":
            return ()
        return self.q_kernels[: self.heads] if self.cascaded else self.q_kernels[:1]


class ArchConfig(BaseModel):
    """One EfficientViT, checked at construction, hashable; `key` identifies the network it describes."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    image_size: Annotated[int | tuple[int, int], BeforeValidator(parse_image_size)] = 224
    """Input side in pixels, or [height, width]; multiples of 16 from 64 to 512."""
    in_channels: Annotated[StrictInt, Field(ge=1, le=64)] = 3
    """Channels of the input image."""
    num_classes: Annotated[StrictInt, Field(ge=0, le=100_000)] = 1000
    """Outputs of the classifier; 0 leaves it out."""
    stem_ratio: Annotated[float, Field(ge=0.25, le=2), NUMBER] = 1.0
    """Widths of the first three stem convolutions as a multiple of the paper's 1/8, 1/4, 1/2 of stage 1."""
    stages: Annotated[tuple[StageConfig, ...], BeforeValidator(parse_stages)]
    """The three stages, at 1/16, 1/32 and 1/64 of the input size."""

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the input in pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def size_text(self) -> str:
        """The input size for people: "224 px", or "96 x 64 px" (height and width)."""
        height, width = self.input_size
        return f"{height} px" if height == width else f"{height} x {width} px"

    @property
    def stem_widths(self) -> tuple[int, int, int, int]:
        """Output channels of the four stem convolutions."""
        width = self.stages[0].width
        if self.stem_ratio == 1:  # the paper's widths exactly: round_to would make 8 of an eighth of 32
            return (width // 8, width // 4, width // 2, width)
        first, second, third = (round_to(width * self.stem_ratio / part, 8) for part in (8, 4, 2))
        return (first, second, third, width)

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of tokens in each stage."""
        return _grids(*self.input_size)

    def window_side(self, stage: int) -> int:
        """Side of the attention window that stage `stage` (0, 1, 2) really uses, in tokens."""
        return min(self.stages[stage].window, *self.grids[stage])  # square, by the shorter side, as in timm

    def merge_dim(self, stage: int) -> int:
        """Hidden channels of the downsampling into stage `stage` (1 or 2)."""
        return round_to(self.stages[stage - 1].width * self.stages[stage].merge_ratio, 8)

    @property
    def canonical(self) -> dict[str, Any]:
        """Only what the network uses, as plain values: equal for equal networks."""
        stages = []
        for index, stage in enumerate(self.stages):
            used: dict[str, Any] = {
                "width": stage.width,
                "depth": stage.depth,
                "mixer": stage.mixer,
                "ffn_count": stage.ffn_count,
                "ffn_dim": stage.ffn_dim,  # also the FFNs of the downsamplings into and out of the stage
            }
            if index:
                used["merge_dim"] = self.merge_dim(index)
            if stage.mixer != "none":
                used |= {"heads": stage.heads, "qk_dim": stage.qk_dim, "v_dim": stage.v_dim}
            if stage.mixer == "softmax":
                used |= {
                    "cascade": stage.cascaded,
                    "q_kernels": list(stage.used_q_kernels),
                    "window": self.window_side(index),
                }
            stages.append(used)
        return {
            "image_size": list(self.input_size),
            "in_channels": self.in_channels,
            "num_classes": self.num_classes,
            "stem": list(self.stem_widths),
            "stages": stages,
        }

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits that are equal exactly for equal networks (`canonical`)."""
        # run folders and caches hold keys: whatever changes this text orphans them
        text = json.dumps(self.canonical, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @classmethod
    def preset(cls, name: str) -> ArchConfig:
        """One of the paper's networks, "m0" to "m5" (Table 1 of arXiv 2305.07027).

        Raises:
            UsageError: the name is not a preset.
        """
        if name not in _PRESETS:
            raise UsageError(f"no preset is called '{name}'. {did_you_mean(name, _PRESETS)}")
        widths, depths, heads, q_kernels = _PRESETS[name]
        stages = tuple(
            StageConfig(width=width, depth=depth, heads=head, q_kernels=q_kernels)
            for width, depth, head in zip(widths, depths, heads, strict=True)
        )
        return cls(stages=stages)

    @classmethod
    def load(cls, path: str | Path) -> ArchConfig:
        """The architecture in a YAML file.

        Raises:
            UsageError: with the file, the path of the field, its value and what is allowed.
        """
        return validate(cls, read_yaml(Path(path)), str(path))

    def to_yaml(self, comment: str = "") -> str:
        """YAML that `load` reads back to an equal value; `comment` goes to the head, line by line."""
        head = "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines())
        top = _yaml_lines(self, leave_out="stages")
        stages = ["- " + "\n  ".join(_yaml_lines(stage)) for stage in self.stages]
        return head + "\n".join([*top, "stages:", *stages]) + "\n"


def _yaml_lines(model: BaseModel, leave_out: str = "") -> list[str]:
    """One `name: value` line for each field; scalars and lists of numbers read the same in JSON and YAML."""
    fields = model.model_dump(mode="json", exclude={leave_out}).items()
    return [f"{name}: {value if isinstance(value, str) else json.dumps(value)}" for name, value in fields]


# name: widths, depths, heads, query kernels
_PRESETS = {
    # m0 as the classifier that was released; Microsoft's detector on m0 has kernels of 7, 5, 3 and 3
    "m0": ((64, 128, 192), (1, 2, 3), (4, 4, 4), (5, 5, 5, 5)),
    "m1": ((128, 144, 192), (1, 2, 3), (2, 3, 3), (7, 5, 3, 3)),
    "m2": ((128, 192, 224), (1, 2, 3), (4, 3, 2), (7, 5, 3, 3)),
    "m3": ((128, 240, 320), (1, 2, 3), (4, 3, 4), (5, 5, 5, 5)),
    "m4": ((128, 256, 384), (1, 2, 3), (4, 4, 4), (7, 5, 3, 3)),
    "m5": ((192, 288, 384), (1, 3, 4), (3, 3, 4), (7, 5, 3, 3)),
}
PRESETS = tuple(_PRESETS)
