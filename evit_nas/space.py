"""SearchSpace: which architectures a search may propose, as one YAML file and one function.

`suggest(trial)` asks for each open dimension (`choices.py`) and returns an ArchConfig. Every answer is a valid
architecture: widths snap to a multiple of 16 (the SIMD step of pointwise convolutions) and of the heads, so nothing is
ever rejected and tried again.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from evit_nas.arch import ArchConfig, StageConfig, parse_image_size, parse_stages
from evit_nas.choices import (
    Choices,
    FixedTrial,
    Param,
    RandomTrial,
    Trial,
    Value,
    answer,
    ask,
    describe_choices,
    offer,
)
from evit_nas.errors import UsageError, did_you_mean
from evit_nas.yamlio import read_yaml, validate

BLOCK = 16  # ONNX Runtime (AVX-512) computes whole blocks of 16: 132 channels take as long as 144

# Orders a dimension from the cheapest choice to the dearest where numbers do not do it.
_COST_ORDER: dict[Value, int] = {"none": 0, "linear": 1, "softmax": 2}
_TRIED = ("mixer", "heads", "window")  # of which the least is not always the cheapest


class StageSpace(BaseModel):
    """Choices for every field of a StageConfig; fields left out are fixed at the paper's value."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core)
        offer(handler.resolve_ref_schema(schema), StageConfig)
        return schema

    width: Choices
    depth: Choices
    heads: Choices = (4,)
    qk_dim: Choices = (16,)
    v_ratio: Choices = (1.0,)
    ffn_ratio: Choices = (2.0,)
    cascade: Choices = (True,)
    q_kernels: Choices = (5,)
    window: Choices = (7,)
    mixer: Choices = ("softmax",)
    ffn_count: Choices = (1,)
    merge_ratio: Choices = (4.0,)

    @model_validator(mode="after")
    def _check(self) -> StageSpace:
        for name, choices in self:
            for choice in choices:
                self._check_choice(name, choice)
        for heads in self.heads:
            step = math.lcm(BLOCK, heads)
            if not any(width % step == 0 for width in range(self.width[0], self.width[-1] + 1)):
                raise ValueError(
                    f"width must reach a multiple of {step} (of {BLOCK} and of {heads} heads), "
                    f"got {self.width[0]} to {self.width[-1]}"
                )
        if "none" in self.mixer and 0 in self.ffn_count:
            raise ValueError("a block must hold something: leave 0 out of ffn_count or none out of mixer")
        return self

    def _check_choice(self, name: str, choice: Value) -> None:
        if name == "q_kernels":
            kernels = choice if isinstance(choice, tuple) else (choice,)
            if isinstance(choice, tuple) and len(choice) < max(self.heads):
                raise ValueError(
                    f"q_kernels needs a kernel for each of up to {max(self.heads)} heads, got {list(choice)}; "
                    "one number stands for the same kernel in all heads"
                )
            fields: dict[str, Any] = {"heads": 1, "q_kernels": kernels}
        else:
            fields = {name: choice}
            if name == "heads" and isinstance(choice, int) and 0 < choice <= 16:
                fields |= {"width": 8 * choice, "q_kernels": (3,) * choice}  # or these would be refused for it
        try:
            StageConfig.model_validate({"width": 64, "depth": 1} | fields)
        except ValueError as error:
            reason = getattr(error, "errors", list)()[0]["msg"].removeprefix("Value error, ")
            raise ValueError(f"{name} {choice!r}: {reason[0].lower()}{reason[1:]}") from None

    def kernels(self, choice: Value) -> tuple[int, ...]:
        """The q_kernels field of a StageConfig for one choice here."""
        return choice if isinstance(choice, tuple) else (int(choice),) * max(self.heads)

    def snapped(self, width: int, heads: int) -> int:
        """The multiple of 16 and of `heads` nearest to `width` inside the range."""
        step = math.lcm(BLOCK, heads)
        low, high = math.ceil(self.width[0] / step) * step, self.width[-1] // step * step
        nearest = step * int(width / step + 0.5)
        return int(min(max(nearest, low), high))


class SearchSpace(BaseModel):
    """Fixed input and classes, and for every architecture field the choices a search has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core)
        offer(handler.resolve_ref_schema(schema), ArchConfig)
        return schema

    image_size: Annotated[int | tuple[int, int], BeforeValidator(parse_image_size)] = 224
    in_channels: Annotated[int, Field(strict=True, ge=1, le=64)] = 3
    num_classes: Annotated[int, Field(strict=True, ge=0, le=100_000)] = 1000
    stem_ratio: Choices = (1.0,)
    stages: Annotated[tuple[StageSpace, ...], BeforeValidator(parse_stages)]

    @model_validator(mode="after")
    def _check(self) -> SearchSpace:
        for ratio in self.stem_ratio:
            if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0.25 <= ratio <= 2:
                raise ValueError(f"stem_ratio must be a number from 0.25 to 2, got {ratio!r}")
        return self

    @classmethod
    def load(cls, name: str | Path) -> SearchSpace:
        """A shipped space by name, or any YAML file by path.

        Raises:
            UsageError: no such space, or a wrong field, with file, path, value and what is allowed.
        """
        return validate(cls, read_yaml(space_path(name)), str(name))

    def dimensions(self) -> list[tuple[str, tuple[Value, ...]]]:
        """Name and choices of every open dimension (more than one choice), in the order they are asked."""
        found = [("stem_ratio", self.stem_ratio)]
        for index, stage in enumerate(self.stages, start=1):
            found += [(f"stage{index}.{name}", choices) for name, choices in stage]
        return [(name, choices) for name, choices in found if len(choices) > 1]

    @property
    def size(self) -> int:
        """Number of points, counted before equal networks (unused fields, snapped widths) are merged."""
        return math.prod(len(choices) for _, choices in self.dimensions())

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits; equal for spaces that propose the same."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def suggest(self, trial: Trial) -> ArchConfig:
        """The architecture that the answers of `trial` describe."""
        stem_ratio = ask(trial, "stem_ratio", self.stem_ratio)
        # even what the mixer leaves unused: Optuna's GP draws at random what not every trial was asked
        answers = [
            {name: ask(trial, f"stage{index}.{name}", choices) for name, choices in stage}
            for index, stage in enumerate(self.stages, start=1)
        ]
        return self._arch(stem_ratio, answers)

    def _arch(self, stem_ratio: Value, answers: Sequence[dict[str, Any]]) -> ArchConfig:
        stages = []
        for stage, fields in zip(self.stages, answers, strict=True):
            width = stage.snapped(fields["width"], fields["heads"])
            kernels = stage.kernels(fields["q_kernels"])
            stages.append(fields | {"width": width, "q_kernels": kernels})
        return ArchConfig.model_validate(
            {
                "image_size": self.image_size,
                "in_channels": self.in_channels,
                "num_classes": self.num_classes,
                "stem_ratio": stem_ratio,
                "stages": stages,
            }
        )

    def sample(self, rng: random.Random) -> ArchConfig:
        """A random architecture, uniform over the choices of each dimension."""
        return self.suggest(RandomTrial(rng))

    def smallest(self) -> ArchConfig:
        """The least choice in every dimension; not always the cheapest network: see `cheapest`."""
        return self._arch(min(self.stem_ratio), self._extreme(min))

    def largest(self) -> ArchConfig:
        """The greatest choice in every dimension."""
        return self._arch(max(self.stem_ratio), self._extreme(max))

    def cheapest(self, price: Callable[[ArchConfig], float]) -> ArchConfig:
        """The architecture with the lowest price, such as its MACs: the lower bound of what a search can reach.

        The least of everything but mixer, heads and window, which are tried out: fewer heads may need a wider stage to
        be a multiple of, and have more parameters in the queries, keys and values of each.
        """
        stem_ratio, answers = min(self.stem_ratio), self._extreme(min)
        for index, stage in enumerate(self.stages):
            tried = [
                answers[index] | dict(zip(_TRIED, values, strict=True))
                for values in itertools.product(*(getattr(stage, name) for name in _TRIED))
            ]
            options = [[*answers[:index], fields, *answers[index + 1 :]] for fields in tried]
            answers = min(options, key=lambda option: price(self._arch(stem_ratio, option)))
        return self._arch(stem_ratio, answers)

    def _extreme(self, pick: Any) -> list[dict[str, Any]]:
        def rank(choice: Value) -> Any:
            return sum(choice) if isinstance(choice, tuple) else _COST_ORDER.get(choice, choice)

        return [{name: pick(choices, key=rank) for name, choices in stage} for stage in self.stages]

    def adapted(self, arch: ArchConfig) -> ArchConfig:
        """`arch` with the input and the classes of this space: how m0..m5 become comparable here."""
        fixed = {
            "image_size": self.image_size,
            "in_channels": self.in_channels,
            "num_classes": self.num_classes,
        }
        return arch.model_copy(update=fixed)

    def params(self, arch: ArchConfig) -> dict[str, Param]:
        """The answers that make `suggest` return (a network equal to) `arch`.

        Raises:
            UsageError: `arch` is not in the space; the message lists the fields that are outside.
        """
        params: dict[str, Param] = {}
        outside = []
        if self.adapted(arch) != arch:
            outside.append(f"image_size, in_channels or num_classes differ from {self.image_size}, ...")
        fields: list[tuple[str, Value, tuple[Value, ...]]] = [("stem_ratio", arch.stem_ratio, self.stem_ratio)]
        for index, (stage, space) in enumerate(zip(arch.stages, self.stages, strict=True), start=1):
            for name, choices in space:
                value = getattr(stage, name)
                if name == "q_kernels":
                    used = stage.used_q_kernels
                    same = [c for c in choices if space.kernels(c)[: len(used)] == used]
                    value = same[0] if same else value
                elif name == "width" and value not in choices:
                    value = next((c for c in choices if space.snapped(c, stage.heads) == value), value)
                elif is_unused(stage, name, index) and value not in choices:
                    value = choices[0]
                fields.append((f"stage{index}.{name}", value, choices))
        for name, value, choices in fields:
            if value not in choices:
                outside.append(f"{name} = {value} is not in {describe_choices(choices)}")
            elif len(choices) > 1:
                key, param = answer(name, value, choices)
                params[key] = param
        if not outside and self.suggest(FixedTrial(params)).key != arch.key:
            outside.append("a width is not a multiple of both 16 and the heads")
        if outside:
            raise UsageError("the architecture is not in the space: " + "; ".join(outside) + ".")
        return params

    def __contains__(self, arch: ArchConfig) -> bool:
        try:
            self.params(arch)
        except UsageError:
            return False
        return True


def is_unused(stage: StageConfig, name: str, index: int) -> bool:
    """Whether a field of stage `index` (1, 2, 3) means nothing to the network."""
    if name == "merge_ratio":
        return index == 1
    if stage.mixer == "none":
        return name in {"heads", "qk_dim", "v_ratio", "cascade", "q_kernels", "window"}
    if stage.mixer == "linear":
        return name in {"cascade", "q_kernels", "window"}
    return name == "cascade" and stage.heads == 1


_PREFIX = "efficientvit-"  # of what a shipped space is called


def shipped_spaces() -> dict[str, Path]:
    """Name and path of every search space that comes with the package."""
    here = Path(__file__).parent
    installed = here / "search_spaces"  # inside the wheel; in a checkout they lie beside the package
    folder = installed if installed.is_dir() else here.parent / "search_spaces"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def resolved_space(name: str) -> str:
    """The shipped space that `name` is the end of (tiny, 224), in full, unless that is a file; else `name` itself."""
    full = f"{_PREFIX}{name}"
    return full if full in shipped_spaces() and not Path(name).is_file() else name


def space_path(name: str | Path) -> Path:
    """Where a space is: a shipped one by name, in full or as `resolved_space` knows it, else the path itself.

    Raises:
        UsageError: it is neither.
    """
    shipped, resolved = shipped_spaces(), resolved_space(str(name))
    if resolved in shipped:
        return shipped[resolved]
    path = Path(name)
    if not path.exists() and path.suffix not in {".yaml", ".yml"}:
        raise UsageError(f"no search space is called '{name}'. {did_you_mean(str(name), shipped)} Or give a YAML file.")
    return path
