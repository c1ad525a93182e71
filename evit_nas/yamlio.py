"""YAML in and out at the door: safe loader, small files only, one clear message for whatever is wrong.

A file may come from a stranger, so nothing is constructed but plain values: aliases (the way to write a
"YAML bomb") and tags are refused, and keys may not repeat.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from evit_nas.errors import UsageError, did_you_mean, in_a_line

MAX_BYTES = 100_000  # a config is a few kB; a larger file is a mistake, and can take minutes to parse
SHOWN_CHARS = 60  # of a wrong value in a message
SHOWN_FIELDS = 20  # in a message about many wrong ones

Model = TypeVar("Model", bound=BaseModel)


class _StrictLoader(yaml.SafeLoader):
    """Safe loader without aliases, tags and repeated keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            problem = f"aliases (*{event.anchor}) are not allowed; write the value out"
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        if getattr(event, "tag", None) is not None:
            problem = f"tags ({shown(event.tag)}) are not allowed; write a plain value"
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable) or key in seen:
                problem = f"key {shown(key)} is repeated or is not a plain value"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def to_yaml(model: BaseModel) -> str:
    """All fields of a model as YAML that `read_yaml` reads."""
    return yaml.safe_dump(model.model_dump(mode="json"), sort_keys=False, width=110)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping a YAML file holds.

    Raises:
        UsageError: the file is missing, unreadable, too large, binary, empty, not YAML, or not a mapping.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)  # a pipe or a device tells no size
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file.") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}.") from None
    if len(content) > MAX_BYTES:
        raise UsageError(f"{path}: a config file has at most {MAX_BYTES:,} bytes, this one has more.")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not a text file (expected YAML in UTF-8).") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """As `read_yaml`, from a string; `source` names it in messages."""
    try:
        data = yaml.load(text, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        raise UsageError(f"{source}{where}: not valid YAML: {reason}.") from None
    except RecursionError:
        raise UsageError(f"{source}: not valid YAML: nested too deeply.") from None
    except Exception as error:  # PyYAML lets through what int(), chr() and date() raise on a strange scalar
        reason = in_a_line(error)
        raise UsageError(f"{source}: not valid YAML: {reason}.") from None
    if data is None:
        raise UsageError(f"{source}: the file is empty; expected a mapping of fields.")
    if not isinstance(data, dict):
        raise UsageError(f"{source}: expected a mapping of fields at the top level, got {shown(data)}.")
    return data


def validate(model: type[Model], data: Any, source: str) -> Model:
    """`data` as a `model`.

    Raises:
        UsageError: one line for each wrong field, with its path, its value and what is allowed.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        lines = [_explain(model, details) for details in error.errors()]
        if len(lines) == 1:
            raise UsageError(f"{source}: {lines[0]}") from None
        if len(lines) > SHOWN_FIELDS:
            lines[SHOWN_FIELDS:] = ["..."]
        listed = "".join(f"\n  {line}" for line in lines)
        raise UsageError(f"{source}: {error.error_count()} fields are wrong:{listed}") from None


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UsageError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}.") from None
    except ValueError as error:  # of the encoding, too
        raise UsageError(f"{path}: damaged: {error}.") from None


def shown(value: object) -> str:
    """`value` as Python writes it, cut to what fits into a message."""
    try:
        text = repr(value)
    except ValueError:  # Python does not write integers of more than 4300 digits
        text = "an enormous number"
    return text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 3] + "..."


def field_path(loc: tuple[int | str, ...]) -> str:
    """('stages', 1, 'width') as the user writes it: stages[1].width."""
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        else:  # a stranger's key may hold anything, also what commands a terminal
            name = part if part.isprintable() and len(part) <= SHOWN_CHARS else shown(part)
            path += f".{name}" if path else name
    return path


def _explain(model: type[BaseModel], details: ErrorDetails) -> str:
    loc = details["loc"]
    path = field_path(loc)
    if details["type"] == "extra_forbidden":
        known = _fields_at(model, loc[:-1])
        hint = did_you_mean(str(loc[-1]), known) if known else "No such field is known here."
        return f"unknown field {path}. {hint}"
    if details["type"] == "missing":
        return f"{path} is missing."
    message = details["msg"].removeprefix("Value error, ").removesuffix(".")
    message = message[0].lower() + message[1:] if message.startswith(("Input", "List", "Tuple")) else message
    if details["type"] == "model_type":
        return f"{path} must be a mapping of fields, got {shown(details['input'])}."
    if details["type"] == "value_error":  # our own checks name their fields and values
        return f"{path}: {message}." if path else f"{message}."
    return f"{path}: {message}, got {shown(details['input'])}."


def _fields_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Field names of the (possibly nested) model that `loc` points into; empty if it is not a model."""
    current: Any = model
    for part in loc:
        if isinstance(part, str):
            current = current.model_fields[part].annotation if part in current.model_fields else None
        while current is not None and not (isinstance(current, type) and issubclass(current, BaseModel)):
            nested = [a for a in getattr(current, "__args__", ()) if a is not Ellipsis]
            models = [a for a in nested if isinstance(a, type) and issubclass(a, BaseModel)]
            inner = nested[0] if nested and not isinstance(nested[0], type) else None
            current = models[0] if models else inner
        if current is None:
            return []
    return list(current.model_fields)
