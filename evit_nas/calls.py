"""What the functions for Python have in common: results that print as tables, records of a call, words to the user."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from evit_nas.commands import in_python
from evit_nas.errors import UsageError
from evit_nas.views import onlooker

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")


class Listing(list[T], Generic[T]):
    """Results that print as a table.

    Args:
        items: the results.
        rows: what the table shows, with the same keys in each row.
    """

    def __init__(self, items: Iterable[T], rows: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(items)
        self.rows = rows

    @property
    def frame(self) -> pd.DataFrame:
        """The table, for pandas."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    def __repr__(self) -> str:
        return str(self.frame.to_string(index=False))

    def _repr_html_(self) -> str:
        return str(self.frame.to_html(index=False))


def called(function: Callable[..., object], /, *arguments: object, **words: object) -> str:
    """What records say was typed, for example evit_nas.ship('runs/a'): words only where they are not the default."""
    known = signature(function).parameters
    given = [repr(str(argument)) for argument in arguments]
    for word, value in words.items():
        if value is not None and not (word in known and value == known[word].default):
            given.append(f"{word}={(str(value) if isinstance(value, Path) else value)!r}")
    return f"evit_nas.{function.__name__}({', '.join(given)})"


def check_least(**words: tuple[int | None, int]) -> None:
    """
    Raises:
        UsageError: one of these words is below its least value.
    """
    for word, (value, least) in words.items():
        if value is not None and value < least:
            raise UsageError(f"{word} must be at least {least}, got {value}.")


def note(message: str) -> None:
    """Has the user told, in the words of Python."""
    with onlooker() as watch:
        watch.note(in_python(message))
