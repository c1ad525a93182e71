"""The choices of a dimension of a search space: as YAML offers them, as a trial is asked, as a person reads them.

An Optuna trial, `RandomTrial` (chance) and `FixedTrial` (replay) answer alike.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Protocol

from pydantic import BaseModel, BeforeValidator
from pydantic.json_schema import JsonSchemaValue

from evit_nas.yamlio import shown

MAX_CHOICES = 1000  # of a dimension: a slip such as {from: 1, to: 1000000000} would fill the memory

Value = int | float | bool | str | tuple[int, ...]
Param = int | float | bool | str


class Trial(Protocol):
    """What `suggest` needs of a trial: the part of Optuna's interface that a space is written in."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int: ...

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None) -> float: ...

    def suggest_categorical(self, name: str, choices: Sequence[Param]) -> Any: ...


class RandomTrial:
    """Answers uniformly at random."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        return self._rng.randrange(low, high + 1, step)

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None) -> float:
        return low if not step else low + step * self._rng.randrange(round((high - low) / step) + 1)

    def suggest_categorical(self, name: str, choices: Sequence[Param]) -> Any:
        return self._rng.choice(choices)


class FixedTrial:
    """Answers from a mapping of parameters, as `SearchSpace.params` makes it or an Optuna trial holds it."""

    def __init__(self, params: Mapping[str, Param]) -> None:
        self._params = params

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        return int(self._params[name])

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None) -> float:
        return float(self._params[name])

    def suggest_categorical(self, name: str, choices: Sequence[Param]) -> Any:
        return self._params[name]


def _choices(value: Any) -> Any:
    """A scalar (fixed), a list (these), or {from, to, step} (a range) as a tuple of choices."""
    if isinstance(value, Mapping):
        return _range(value)
    choices = tuple(value) if isinstance(value, list | tuple) else (value,)
    choices = tuple(tuple(choice) if isinstance(choice, list) else choice for choice in choices)
    if not choices:
        raise ValueError("must offer at least one choice, got an empty list")
    if len(choices) > MAX_CHOICES:
        raise ValueError(f"must offer at most {MAX_CHOICES} choices, got {len(choices)}")
    for choice in choices:
        if not isinstance(choice, int | float | str | tuple):
            raise ValueError(f"must be a value, a list of values or {{from, to, step}}, got {choice!r}")
        if choices.count(choice) > 1:
            raise ValueError(f"must not repeat a choice, got {choice!r} {choices.count(choice)} times")
    numbers = all(isinstance(choice, int | float) and not isinstance(choice, bool) for choice in choices)
    return tuple(sorted(choices)) if numbers else choices  # `ask` offers numbers from the first to the last


def _range(value: Mapping[str, Any]) -> tuple[int | float, ...]:
    if set(value) - {"step"} != {"from", "to"}:
        raise ValueError(f"a range has the fields from, to and (default 1) step, got {sorted(map(str, value))}")
    low, high, step = value["from"], value["to"], value.get("step", 1)
    for number in (low, high, step):
        # not `> max`, which lets NaN pass; the comparison also finds integers that float() cannot take
        if isinstance(number, bool) or not isinstance(number, int | float) or not abs(number) <= sys.float_info.max:
            raise ValueError(f"from, to and step of a range must be numbers of ordinary size, got {shown(number)}")
    if step <= 0 or high < low:
        raise ValueError(f"a range needs from <= to and step > 0, got from {low} to {high} step {step}")
    if (high - low) / step > MAX_CHOICES:
        raise ValueError(f"a range has at most {MAX_CHOICES} values, got {(high - low) / step + 1:.0f}")
    # rounded, so that 1.0 to 2.0 by 0.1 holds 1.7 itself; + 1e-9, so that a quotient of 9.999... does not lose the last
    return tuple(round(low + i * step, 9) for i in range(int((high - low) / step + 1e-9) + 1))


Choices = Annotated[tuple[Any, ...], BeforeValidator(_choices)]

_RANGE = {
    "type": "object",
    "properties": {name: {"type": "number"} for name in ("from", "to", "step")},
    "required": ["from", "to"],
    "additionalProperties": False,
}


def offer(schema: JsonSchemaValue, of: type[BaseModel]) -> None:
    """Lets every dimension in a JSON schema be what `_choices` reads: a value as in `of`, several, or a range."""
    values = of.model_json_schema()["properties"]
    for name, own in schema["properties"].items():
        if own.get("items") == {}:  # choices of anything
            value = {key: part for key, part in values[name].items() if key not in ("default", "title", "description")}
            if value.get("type") == "array":  # of kernels, or the same one for all heads
                value = {"anyOf": [value["items"], value]}
            forms = [value, {"type": "array", "items": value, "minItems": 1}]
            forms += [_RANGE] if value.get("type") in ("integer", "number") else []
            about = {"description": values[name]["description"]} | {key: own[key] for key in ("default",) if key in own}
            schema["properties"][name] = {"anyOf": forms, "title": own["title"]} | about


def _label(choice: Value) -> Param:
    return "-".join(map(str, choice)) if isinstance(choice, tuple) else choice


def _step(choices: Sequence[Value]) -> int | float | None:
    """The common step of ordered numbers, None for on/off choices, names and uneven lists."""
    if any(isinstance(choice, bool | str | tuple) for choice in choices):
        return None
    numbers = [float(choice) for choice in choices if isinstance(choice, int | float)]
    step = numbers[1] - numbers[0]
    if any(abs(b - a - step) > 1e-9 for a, b in itertools.pairwise(numbers)):
        return None
    return int(step) if all(isinstance(choice, int) for choice in choices) else round(step, 9)


def _ordered(choices: Sequence[Value]) -> bool:
    return all(isinstance(choice, int | float) and not isinstance(choice, bool) for choice in choices)


def ask(trial: Trial, name: str, choices: Sequence[Any]) -> Any:
    """One choice: ordered numbers as a range or an index (samplers need the order), the rest as categories."""
    if len(choices) == 1:
        return choices[0]
    step, ordered, labels = _asked_as(tuple(choices), tuple(map(type, choices)))
    if isinstance(step, int):
        return trial.suggest_int(name, choices[0], choices[-1], step=step)
    if step is not None:
        number = trial.suggest_float(name, float(choices[0]), float(choices[-1]), step=step)
        # samplers answer low + k * step, which may differ from the choice in the last bit
        return min(choices, key=lambda choice: abs(choice - number))
    if ordered:
        return choices[trial.suggest_int(f"{name}.index", 0, len(choices) - 1)]
    return choices[labels.index(trial.suggest_categorical(name, labels))]


@cache  # a screening asks for a hundred thousand answers
def _asked_as(
    choices: tuple[Value, ...], types: tuple[type, ...]
) -> tuple[int | float | None, bool, tuple[Param, ...]]:
    """The step of a range, whether there is an order at all, and the labels; `types` tell 1 from 1.0 and True."""
    return _step(choices), _ordered(choices), tuple(map(_label, choices))


def answer(name: str, value: Value, choices: Sequence[Value]) -> tuple[str, Param]:
    """The parameter name and value with which a trial makes `ask` return `value`."""
    if _ordered(choices) and _step(choices) is None:
        return f"{name}.index", choices.index(value)
    label = _label(value)
    return name, float(label) if isinstance(_step(choices), float) and not isinstance(label, str) else label


def describe_choices(choices: Sequence[Value]) -> str:
    """Choices as a person reads them: a range, or the list."""
    if len(choices) > 2 and (step := _step(choices)) is not None:
        return f"{choices[0]} .. {choices[-1]} step {step}"
    return ", ".join(str(_label(choice)) for choice in choices)
