"""Whether a table of trained networks speaks for a search space: a predictor knows nothing beyond what it has seen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from evit_nas.accuracy.table import SHIPPED_TABLE, LabelTable, shipped_tables
from evit_nas.arch import ArchConfig
from evit_nas.choices import Value
from evit_nas.space import SearchSpace, is_unused

MIN_NETWORKS = 30  # in a table that is a default: with fewer a predictor still learns fast
SLACK = 1.1  # by which a space may reach beyond what the networks span


def default_method(space: SearchSpace, data: str | None) -> str:
    """The accuracy method of a search whose user names none.

    The tables of the package speak if they cover the space, in the regime of the data if there are any. Elsewhere a
    predictor is trained on the data, and zero-cost proxies rank without data.
    """
    if SHIPPED_TABLE in shipped_tables() and covers(LabelTable.load(SHIPPED_TABLE), space):
        return "table"
    return "predictor" if data is not None else "zero-cost"


def covers(table: LabelTable, space: SearchSpace) -> bool:
    """Whether the choices of `space` lie within what the networks of `table` use, and there are enough of them.

    All networks must take images of the space's size. Every stage must have seen every mixer, and heads with and
    without a cascade if they are open; numbers may reach a tenth beyond. What no network of the space uses is free.
    """
    size = space.largest().input_size
    if len(table.networks) < MIN_NETWORKS or any(arch.input_size != size for arch in table.archs):
        return False
    seen: dict[str, set[Value]] = {}
    for arch in table.archs:
        for name, value in _used(arch):
            seen.setdefault(name, set()).add(value)
    return all(_within(set(choices), seen.get(name, set())) for name, choices in _offered(space))


def _used(arch: ArchConfig) -> Iterator[tuple[str, Value]]:
    """What a network consists of, stage by stage; several kernels one by one."""
    yield "stem_ratio", arch.stem_ratio
    for index, stage in enumerate(arch.stages):
        for name, value in stage:
            if is_unused(stage, name, index + 1) and not (name == "cascade" and stage.mixer == "softmax"):
                continue
            values = {
                "cascade": (stage.cascaded,),  # a single head is none, whatever its field says
                "q_kernels": stage.used_q_kernels,
                "window": (arch.window_side(index),),
            }.get(name, (value,))
            yield from ((f"stage{index + 1}.{name}", one) for one in values)


def _offered(space: SearchSpace) -> Iterator[tuple[str, Iterable[Value]]]:
    """What the networks of a space may consist of, as `_used` names it."""
    yield "stem_ratio", space.stem_ratio
    largest = space.largest()  # has the mixer and the heads with which most is used
    for index, stage in enumerate(space.stages):
        for name, choices in stage:
            if is_unused(largest.stages[index], name, index + 1):
                continue
            if name == "q_kernels":
                choices = [kernel for choice in choices for kernel in stage.kernels(choice)]
            elif name == "window":
                choices = [min(choice, *largest.grids[index]) for choice in choices]
            yield f"stage{index + 1}.{name}", choices


def _within(choices: set[Value], seen: set[Value]) -> bool:
    numbers = [[value for value in values if not isinstance(value, bool | str | tuple)] for values in (choices, seen)]
    if not all(numbers):
        return choices <= seen  # on/off and names have no between: each must have been seen
    return min(numbers[1]) <= min(numbers[0]) * SLACK and max(numbers[0]) <= max(numbers[1]) * SLACK
