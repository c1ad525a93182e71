"""YAML at the door: whatever a stranger's file holds, the answer is plain values or one clear message."""

import contextlib
import os
import time
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from evit_nas.errors import UsageError
from evit_nas.yamlio import MAX_BYTES, field_path, parse_yaml, read_yaml, shown, validate

BILLION_LAUGHS = "a: &a [lol, lol]\n" + "".join(
    f"{after}: &{after} [*{before}, *{before}]\n" for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)

REFUSED = {
    "nothing": ("", "the file is empty; expected a mapping of fields."),
    "only a comment": ("# later", "the file is empty; expected a mapping of fields."),
    "a list": ("- 1\n- 2", "expected a mapping of fields at the top level, got [1, 2]."),
    "a word": ("m0", "expected a mapping of fields at the top level, got 'm0'."),
    "nested too deeply": ("[" * 10_000, "not valid YAML: nested too deeply."),
    "an impossible date": ("a: 2001-99-01", "not valid YAML: month must be in 1..12."),
    "an impossible character": (
        r'a: "\UFFFFFFFF"',
        "not valid YAML: Python int too large to convert to C int.",
    ),
}
REFUSED_AT = {
    "an open bracket": ("a: [1,\n", 2, 1, "expected the node content"),
    "a tab": ("a:\n\tb: 1", 2, 1, "cannot start any token"),
    "two documents": ("a: 1\n---\nb: 1", 2, 1, "expected a single document in the stream, but found another"),
    "an alias": ("a: &x 1\nb: *x", 2, 4, "aliases (*x) are not allowed; write the value out."),
    "a YAML bomb": (BILLION_LAUGHS, 2, 8, "aliases (*a) are not allowed"),
    "a repeated key": ("a: 1\nb: 2\na: 3", 3, 1, "key 'a' is repeated"),
    "a repeated key further in": ("s:\n- a: 1\n  a: 2", 3, 3, "key 'a' is repeated"),
    "a list as a key": ("? [1]\n: 2", 1, 3, "key [1] is repeated or is not a plain value."),
    "a merge key": ("<<: {a: 1}", 1, 1, "could not determine a constructor"),
    "a tag without a value": ('a: !!int ""', 1, 4, "tags ('tag:yaml.org,2002:int') are not allowed"),
    "a set": ("a: !!set {1, 2}", 1, 4, "tags ('tag:yaml.org,2002:set') are not allowed"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_parse_yaml_refuses(text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_yaml(text, "x.yaml")

    assert str(error.value) == f"x.yaml: {message}"


@pytest.mark.parametrize(("text", "line", "column", "message"), REFUSED_AT.values(), ids=REFUSED_AT)
def test_parse_yaml_says_where_it_stopped(text: str, line: int, column: int, message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_yaml(text, "x.yaml")

    assert str(error.value).startswith(f"x.yaml, line {line}, column {column}: not valid YAML: ")
    assert message in str(error.value)


@pytest.mark.parametrize("call", ["object/apply:os.mkdir", "object/new:os.mkdir", "name:os.mkdir"])
def test_parse_yaml_runs_no_code(call: str, tmp_path: Path) -> None:
    target = tmp_path / "made by the file"

    with pytest.raises(UsageError, match=r"tags .* are not allowed"):
        parse_yaml(f"a: !!python/{call} ['{target}']", "x.yaml")

    assert not target.exists()


def test_read_yaml_reads_plain_values_whatever_the_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes("\ufeff# café\r\na: [1, 2.5, true]\r\nb: {c: null, d: text}\r\n".encode())

    assert read_yaml(path) == {"a": [1, 2.5, True], "b": {"c": None, "d": "text"}}


def test_read_yaml_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.yaml: no such file\."):
        read_yaml(tmp_path / "none.yaml")


def test_read_yaml_refuses_a_directory(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path)


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n", "a: 1".encode("utf-16")])
def test_read_yaml_refuses_a_file_that_is_not_text(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "image.yaml"
    path.write_bytes(content)

    with pytest.raises(UsageError, match=r"not a text file \(expected YAML in UTF-8\)"):
        read_yaml(path)


def test_read_yaml_refuses_control_characters(tmp_path: Path) -> None:
    path = tmp_path / "zeros.yaml"
    path.write_bytes(bytes(100))

    with pytest.raises(UsageError, match="not valid YAML: unacceptable character #x0000"):
        read_yaml(path)


def test_read_yaml_refuses_a_file_that_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_text("a: 1".ljust(MAX_BYTES))
    assert read_yaml(path) == {"a": 1}

    path.write_text("a: 1".ljust(MAX_BYTES + 1))
    with pytest.raises(UsageError, match=r"at most 100,000 bytes, this one has more"):
        read_yaml(path)


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no endless file on this system")
def test_read_yaml_refuses_an_endless_file() -> None:
    with pytest.raises(UsageError, match="this one has more"):
        read_yaml(Path("/dev/zero"))


@pytest.mark.parametrize("unit", [":59", "[", "{", "? ", "- ", '"', "a: ", "!", "&a", "0x", "\\", "9", "#", "\n"])
def test_the_worst_file_of_the_largest_size_is_read_or_refused_in_seconds(unit: str) -> None:
    start = time.process_time()

    with contextlib.suppress(UsageError):
        parse_yaml(("a: 1" + unit * MAX_BYTES)[:MAX_BYTES], "x.yaml")

    assert time.process_time() - start < 10


class Leaf(BaseModel):
    model_config = ConfigDict(extra="forbid")

    size: int = 1


class Tree(BaseModel):
    model_config = ConfigDict(extra="forbid")

    height: int = 1
    leaves: tuple[Leaf, ...] = ()
    crown: Leaf | None = None
    by_name: dict[str, Leaf] = {}


WRONG = {
    "a type": ({"height": "tall"}, "height: input should be a valid integer, unable to parse string"),
    "not a mapping": ({"leaves": [3]}, "leaves[0] must be a mapping of fields, got 3."),
    "a misspelt field": ({"hieght": 1}, "unknown field hieght. Did you mean 'height'? Known: by_name, "),
    "a misspelt field further in": (
        {"leaves": [{}, {"sise": 1}]},
        "unknown field leaves[1].sise. Did you mean 'size'? Known: size.",
    ),
    "a misspelt optional": ({"crown": {"sise": 1}}, "unknown field crown.sise. Did you mean 'size'?"),
    "a field under a free name": ({"by_name": {"a": {"sise": 1}}}, "unknown field by_name.a.sise. "),
    "an endless value": ({"height": "9" * 5000}, "height: "),
    "a number Python refuses to write": (
        {"crown": 10**5000},
        "crown must be a mapping of fields, got an enormous",
    ),
    "an endless name": ({"a" * 5000: 1}, "unknown field 'aaaaaa"),
    "a name that commands a terminal": ({"\x1b[31m\n": 1}, r"unknown field '\x1b[31m\n'. Known: "),
    "a name that is not text": ({1: 1}, "[1]: Keys should be strings, got 1."),
}


@pytest.mark.parametrize(("data", "message"), WRONG.values(), ids=WRONG)
def test_validate_explains_in_one_short_line(data: object, message: str) -> None:
    with pytest.raises(UsageError) as error:
        validate(Tree, data, "tree.yaml")

    assert str(error.value).startswith(f"tree.yaml: {message}")
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 250


def test_validate_lists_every_wrong_field() -> None:
    with pytest.raises(UsageError) as error:
        validate(Tree, {"height": None, "leaves": [{"size": []}]}, "tree.yaml")

    assert str(error.value).splitlines() == [
        "tree.yaml: 2 fields are wrong:",
        "  height: input should be a valid integer, got None.",
        "  leaves[0].size: input should be a valid integer, got [].",
    ]


def test_validate_shortens_a_long_list_of_wrong_fields() -> None:
    with pytest.raises(UsageError) as error:
        validate(Tree, {f"x{i}": 1 for i in range(1000)}, "tree.yaml")

    first, *listed = str(error.value).splitlines()
    assert first == "tree.yaml: 1000 fields are wrong:"
    assert len(listed) == 21
    assert listed[-1] == "  ..."


def test_field_path_is_what_the_user_wrote() -> None:
    assert field_path(("stages", 1, "q_kernels", 0)) == "stages[1].q_kernels[0]"


def test_shown_fits_into_a_message() -> None:
    assert shown([1, "two"]) == "[1, 'two']"
    assert shown("x" * 1000) == "'" + "x" * 56 + "..."
