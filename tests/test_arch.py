"""ArchConfig: the paper's presets, validity by construction, messages, YAML there and back, and the key."""

import math
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from evit_nas.arch import PRESETS, ArchConfig, StageConfig, round_to
from evit_nas.errors import UsageError
from tests.networks import VARIANTS, tiny_arch

M0 = ArchConfig.preset("m0").to_yaml()


def changed(arch: ArchConfig, stage: int | None = None, **fields: Any) -> ArchConfig:
    """`arch` with other values in one of its stages, or at the top."""
    data = arch.model_dump()
    (data if stage is None else data["stages"][stage]).update(fields)
    return ArchConfig.model_validate(data)


def message_for(text: str, folder: Path) -> str:
    """What `load` says about a file with `text`, without the name of the file."""
    path = folder / "arch.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as error:
        ArchConfig.load(path)
    assert str(error.value).startswith(str(path))
    return str(error.value).removeprefix(str(path)).removeprefix(": ")


# The paper's networks


@pytest.mark.parametrize(
    ("name", "widths", "depths", "heads", "q_kernels"),
    [
        ("m0", [64, 128, 192], [1, 2, 3], [4, 4, 4], (5, 5, 5, 5)),
        ("m1", [128, 144, 192], [1, 2, 3], [2, 3, 3], (7, 5, 3, 3)),
        ("m2", [128, 192, 224], [1, 2, 3], [4, 3, 2], (7, 5, 3, 3)),
        ("m3", [128, 240, 320], [1, 2, 3], [4, 3, 4], (5, 5, 5, 5)),
        ("m4", [128, 256, 384], [1, 2, 3], [4, 4, 4], (7, 5, 3, 3)),
        ("m5", [192, 288, 384], [1, 3, 4], [3, 3, 4], (7, 5, 3, 3)),
    ],
)
def test_presets_are_the_published_ones(
    name: str, widths: list[int], depths: list[int], heads: list[int], q_kernels: tuple[int, ...]
) -> None:
    arch = ArchConfig.preset(name)

    assert [stage.width for stage in arch.stages] == widths
    assert [stage.depth for stage in arch.stages] == depths
    assert [stage.heads for stage in arch.stages] == heads
    assert all(stage.q_kernels == q_kernels for stage in arch.stages)
    assert all(stage.qk_dim == 16 and stage.window == 7 for stage in arch.stages)
    assert all(stage.v_dim * stage.heads == stage.width for stage in arch.stages)
    assert all(stage.ffn_dim == 2 * stage.width and stage.cascaded for stage in arch.stages)
    assert [arch.merge_dim(1), arch.merge_dim(2)] == [4 * widths[0], 4 * widths[1]]
    assert arch.stem_widths == (widths[0] // 8, widths[0] // 4, widths[0] // 2, widths[0])
    assert (arch.input_size, arch.in_channels, arch.num_classes) == ((224, 224), 3, 1000)


def test_there_are_six_presets() -> None:
    assert PRESETS == ("m0", "m1", "m2", "m3", "m4", "m5")
    assert len({ArchConfig.preset(name).key for name in PRESETS}) == 6


def test_preset_suggests_the_nearest_name() -> None:
    with pytest.raises(UsageError, match=r"no preset is called 'm55'\. Did you mean 'm5'\? Known: m0, m1,"):
        ArchConfig.preset("m55")


def test_reading_an_architecture_needs_no_torch() -> None:
    code = "import sys, evit_nas.arch as a; a.ArchConfig.preset('m0').key; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Sizes that follow from the fields


@pytest.mark.parametrize(
    ("image_size", "grids", "windows"),
    [
        (224, ((14, 14), (7, 7), (4, 4)), [7, 7, 4]),
        (256, ((16, 16), (8, 8), (4, 4)), [7, 7, 4]),
        (96, ((6, 6), (3, 3), (2, 2)), [6, 3, 2]),
        (64, ((4, 4), (2, 2), (1, 1)), [4, 2, 1]),
        (512, ((32, 32), (16, 16), (8, 8)), [7, 7, 7]),
        ([224, 448], ((14, 28), (7, 14), (4, 7)), [7, 7, 4]),
        ([512, 64], ((32, 4), (16, 2), (8, 1)), [4, 2, 1]),
    ],
)
def test_grids_and_windows(image_size: Any, grids: Any, windows: list[int]) -> None:
    arch = changed(ArchConfig.preset("m0"), image_size=image_size)

    assert arch.grids == grids
    assert [arch.window_side(stage) for stage in range(3)] == windows


def test_a_square_may_be_written_with_two_sides() -> None:
    assert changed(ArchConfig.preset("m0"), image_size=[224, 224]) == ArchConfig.preset("m0")


@pytest.mark.parametrize(("v_ratio", "v_dim"), [(1, 20), (1.0, 20), (1.1, 24), (0.25, 8), (2, 40)])
def test_value_width_is_a_multiple_of_8_unless_it_is_that_of_the_head(v_ratio: float, v_dim: int) -> None:
    assert StageConfig(width=80, depth=1, heads=4, v_ratio=v_ratio).v_dim == v_dim


def test_only_kernels_that_exist_are_used() -> None:
    stage = {"width": 64, "depth": 1, "heads": 2, "q_kernels": [7, 5, 3]}

    assert StageConfig.model_validate(stage).used_q_kernels == (7, 5)
    assert StageConfig.model_validate(stage | {"cascade": False}).used_q_kernels == (7,)
    assert StageConfig.model_validate(stage | {"heads": 1}).used_q_kernels == (7,)
    assert StageConfig.model_validate(stage | {"mixer": "linear"}).used_q_kernels == ()


def test_stem_ratio_scales_all_but_the_last_stem_width() -> None:
    assert changed(ArchConfig.preset("m5"), stem_ratio=0.5).stem_widths == (16, 24, 48, 192)


def test_round_to_goes_to_the_nearest_multiple() -> None:
    assert [round_to(value, 8) for value in (0.1, 11.9, 12, 19.9, 20)] == [8, 8, 16, 16, 24]


# Wrong input: what is changed in the YAML of m0, and the whole message

STAGE_FIELDS = ", ".join(sorted(StageConfig.model_fields))
SIZES = "image_size: must be a multiple of 16 from 64 to 512, got"
KERNELS = "q_kernels: [5, 5, 5, 5]"

WRONG = {
    "unknown field": (
        "num_classes: 1000",
        "num_classes: 1000\nnum_clases: 10",
        "unknown field num_clases. Did you mean 'num_classes'? "
        "Known: image_size, in_channels, num_classes, stages, stem_ratio.",
    ),
    "unknown field of a stage": (
        "  window: 7",
        "  window: 7\n  windw: 7",
        f"unknown field stages[0].windw. Did you mean 'window'? Known: {STAGE_FIELDS}.",
    ),
    "missing field": ("  depth: 1\n", "", "stages[0].depth is missing."),
    "bool for int": (
        "depth: 1",
        "depth: true",
        "stages[0].depth: input should be a valid integer, got True.",
    ),
    "float for int": ("depth: 1", "depth: 1.0", "stages[0].depth: input should be a valid integer, got 1.0."),
    "null for int": ("depth: 1", "depth:", "stages[0].depth: input should be a valid integer, got None."),
    "text for int": ("depth: 1", "depth: '1'", "stages[0].depth: input should be a valid integer, got '1'."),
    "int for bool": (
        "cascade: true",
        "cascade: 1",
        "stages[0].cascade: input should be a valid boolean, got 1.",
    ),
    "text for number": (
        "ffn_ratio: 2.0",
        "ffn_ratio: 2x",
        "stages[0].ffn_ratio: must be a number, got '2x'.",
    ),
    "bool for number": ("stem_ratio: 1.0", "stem_ratio: on", "stem_ratio: must be a number, got True."),
    "not a number": (
        "ffn_ratio: 2.0",
        "ffn_ratio: .nan",
        "stages[0].ffn_ratio: must be a finite number, got nan.",
    ),
    "infinite": (
        "ffn_ratio: 2.0",
        "ffn_ratio: .inf",
        "stages[0].ffn_ratio: must be a finite number, got inf.",
    ),
    "astronomic number": (
        "ffn_ratio: 2.0",
        "ffn_ratio: 1" + "0" * 400,
        f"stages[0].ffn_ratio: must be a number of ordinary size, got 1{'0' * 56}...",
    ),
    "astronomic hexadecimal": (
        "width: 64",
        "width: 0x" + "f" * 5000,
        "stages[0].width: input should be a multiple of 8, got an enormous number.",
    ),
    "too few": (
        "depth: 1",
        "depth: 0",
        "stages[0].depth: input should be greater than or equal to 1, got 0.",
    ),
    "too many": (
        "depth: 1",
        "depth: 17",
        "stages[0].depth: input should be less than or equal to 16, got 17.",
    ),
    "width": ("width: 64", "width: 60", "stages[0].width: input should be a multiple of 8, got 60."),
    "mixer": (
        "mixer: softmax",
        "mixer: conv",
        "stages[0].mixer: input should be 'softmax', 'linear' or 'none', got 'conv'.",
    ),
    "width and heads": (
        "heads: 4",
        "heads: 3",
        "stages[0]: width must be divisible by heads, got width 64 with 3 heads; the nearest width that is: 72.",
    ),
    "even kernel": (
        KERNELS,
        "q_kernels: [5, 5, 4, 5]",
        "stages[0]: q_kernels must be odd, got 4 in [5, 5, 4, 5]; use 5.",
    ),
    "too few kernels": (
        KERNELS,
        "q_kernels: [5, 5]",
        "stages[0]: q_kernels needs one kernel for each of the 4 heads, got [5, 5].",
    ),
    "no kernels": (
        KERNELS,
        "q_kernels: []",
        "stages[0].q_kernels: must be a list of odd numbers, one for each head, got [].",
    ),
    "large kernel": (
        KERNELS,
        "q_kernels: [5, 17, 5, 5]",
        "stages[0].q_kernels[1]: input should be less than or equal to 15, got 17.",
    ),
    "one kernel": (
        KERNELS,
        "q_kernels: 5",
        "stages[0].q_kernels: must be a list of odd numbers, one for each head, got 5.",
    ),
    "an empty block": (
        "mixer: softmax\n  ffn_count: 1",
        "mixer: none\n  ffn_count: 0",
        "stages[0]: a block must hold something: ffn_count is 0 and mixer is none; set one of them.",
    ),
    "image size": ("image_size: 224", "image_size: 220", f"{SIZES} 220."),
    "small image": ("image_size: 224", "image_size: 32", f"{SIZES} 32."),
    "large image": ("image_size: 224", "image_size: [224, 544]", f"{SIZES} 544."),
    "image of no size": ("image_size: 224", "image_size: yes", f"{SIZES} True."),
    "image in three dimensions": (
        "image_size: 224",
        "image_size: [224, 224, 224]",
        "image_size: must be one side or [height, width], got 3 numbers.",
    ),
    "no stages": (M0, "stages:", "stages: must be a list of exactly 3 stages, got None."),
    "one stage": (M0, "stages: [{}]", "stages: must be a list of exactly 3 stages, got 1."),
    "a mapping of stages": (
        M0,
        "stages: {a: 1}",
        "stages: must be a list of exactly 3 stages, got {'a': 1}.",
    ),
    "a list": (M0, "- 1", "expected a mapping of fields at the top level, got [1]."),
    "empty": (M0, "", "the file is empty; expected a mapping of fields."),
    "an alias": (
        "depth: 1",
        "depth: *width",
        ", line 7, column 10: not valid YAML: aliases (*width) are not allowed; write the value out.",
    ),
}


@pytest.mark.parametrize(("old", "new", "message"), WRONG.values(), ids=WRONG)
def test_load_explains_what_is_wrong(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert old in M0

    assert message_for(M0.replace(old, new, 1), tmp_path) == message


def test_load_lists_everything_that_is_wrong(tmp_path: Path) -> None:
    text = M0.replace("depth: 3", "dept: 3").replace("heads: 4", "heads: 5")

    assert message_for(text, tmp_path).splitlines() == [
        "4 fields are wrong:",
        "  stages[0]: width must be divisible by heads, got width 64 with 5 heads; the nearest width that is: 80.",
        "  stages[1]: width must be divisible by heads, got width 128 with 5 heads; the nearest width that is: 120.",
        "  stages[2].depth is missing.",
        f"  unknown field stages[2].dept. Did you mean 'depth'? Known: {STAGE_FIELDS}.",
    ]


@pytest.mark.parametrize("stages", [2, 4])
def test_load_refuses_another_number_of_stages(stages: int, tmp_path: Path) -> None:
    text = "stages:\n" + "- {width: 64, depth: 1}\n" * stages

    assert message_for(text, tmp_path) == f"stages: must be a list of exactly 3 stages, got {stages}."


def test_load_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.yaml: no such file\."):
        ArchConfig.load(tmp_path / "none.yaml")


@pytest.mark.parametrize("heads", range(1, 17))
def test_the_width_that_is_offered_is_the_nearest_valid_one(heads: int) -> None:
    def valid(width: int) -> bool:
        return width % heads == 0

    for width in {8, 64, 128, 1000, 2000, 2040, 2048}:
        if valid(width):
            continue
        with pytest.raises(ValidationError) as error:
            StageConfig(width=width, depth=1, heads=heads, q_kernels=(5,) * heads)
        offered = int(str(error.value).split("the nearest width that is: ")[1].split()[0])
        nearest = min(abs(width - other) for other in range(8, 2049, 8) if valid(other))
        assert abs(width - offered) == nearest
        assert StageConfig(width=offered, depth=1, heads=heads, q_kernels=(5,) * heads).width == offered


def test_a_stage_without_attention_may_ignore_its_fields() -> None:
    assert StageConfig(width=64, depth=1, heads=3, q_kernels=(4,), mixer="none").used_q_kernels == ()


def test_an_architecture_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        ArchConfig.preset("m0").image_size = 256  # type: ignore[misc]


# Damaged files

VALUES = st.sampled_from([
    "", "null", "~", "true", "off", "-1", "0", "1", "3", "63", "64", "1000000", "5.0", "1e9", ".nan", "-.inf",
    "0x1F", "017", "1:30", "2001-01-01", "2001-99-99", "none", "''", "'x'", "[]", "[[]]", "[1]", "[5, 4]",
    "{}", "{a:}", "{1}", "*a", "&a", "!!x", "?", "|", ">", "-", "@", "`", "%", ":", "=", "!!int ''",
    "!!float ''", "!!bool x", "!!timestamp x", "!!set {5, 3}", "{a: &a 1, b: *a}", "[" * 500, "{a: " * 500,
    "9" * 400, "9" * 5000, "0x" + "f" * 5000, r'"\UFFFFFFFF"', r'"\ud800"',
])  # fmt: skip
CHARACTERS = st.text(st.sampled_from(string.printable + "\x00\x1b\x85\u2028\ufeff\ufffeé😀"), max_size=3)


@st.composite
def damaged_yaml(draw: st.DrawFn) -> str:
    text = ArchConfig.preset(draw(st.sampled_from(PRESETS))).to_yaml()
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["characters", "value", "key", "drop", "repeat", "indent"]))
        if kind == "characters":
            start = draw(st.integers(0, len(text)))
            end = start + draw(st.integers(0, 3))
            text = text[:start] + draw(CHARACTERS) + text[end:]
            continue
        lines = text.split("\n")
        at = draw(st.integers(0, len(lines) - 1))
        key, _, value = lines[at].partition(": ")
        lines[at : at + 1] = {
            "value": lambda: [f"{key}: {draw(VALUES)}"],  # noqa: B023
            "key": lambda: [f"{draw(VALUES)}: {value}"],  # noqa: B023
            "drop": list,
            "repeat": lambda: [lines[at]] * 2,  # noqa: B023
            "indent": lambda: ["  " + lines[at]],  # noqa: B023
        }[kind]()
        text = "\n".join(lines)
    return text


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(text=damaged_yaml())
def test_load_reads_or_explains_any_damaged_file(text: str, tmp_path: Path) -> None:
    path = tmp_path / "damaged.yaml"
    path.write_text(text, encoding="utf-8")

    result = arch_or_message(path)

    if isinstance(result, ArchConfig):
        assert ArchConfig.model_validate(result.model_dump()) == result
    else:
        assert 10 < len(result.removeprefix(str(path))) < 10_000
        assert result.encode()


def arch_or_message(path: Path) -> ArchConfig | str:
    try:
        return ArchConfig.load(path)
    except UsageError as error:
        return str(error)


# There and back

SIDES = st.sampled_from(range(64, 513, 32))


@st.composite
def valid_stages(draw: st.DrawFn) -> StageConfig:
    heads = draw(st.integers(1, 16))
    step = math.lcm(8, heads)
    return StageConfig(
        width=step * draw(st.integers(1, 2048 // step)),
        depth=draw(st.integers(1, 16)),
        heads=heads,
        qk_dim=4 * draw(st.integers(1, 32)),
        v_ratio=draw(st.floats(0.25, 4)),
        ffn_ratio=draw(st.floats(0.5, 8)),
        cascade=draw(st.booleans()),
        q_kernels=tuple(draw(st.lists(st.sampled_from(range(1, 16, 2)), min_size=heads, max_size=16))),
        window=draw(st.integers(1, 64)),
        mixer=draw(st.sampled_from(["softmax", "linear", "none"])),
        ffn_count=draw(st.integers(1, 4)),
        merge_ratio=draw(st.floats(1, 8)),
    )


VALID_ARCHS = st.builds(
    ArchConfig,
    image_size=SIDES | st.tuples(SIDES, SIDES),
    in_channels=st.integers(1, 64),
    num_classes=st.integers(0, 100_000),
    stem_ratio=st.floats(0.25, 2),
    stages=st.tuples(valid_stages(), valid_stages(), valid_stages()),
)


# shrinking three stages of twelve fields takes minutes
quick_to_fail = settings(
    max_examples=100,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def assert_survives_writing(arch: ArchConfig, folder: Path) -> None:
    path = folder / "arch.yaml"
    path.write_text(arch.to_yaml("any comment\nof two lines: [*"), encoding="utf-8")
    loaded = ArchConfig.load(path)

    assert loaded == arch
    assert loaded.key == arch.key
    assert hash(loaded) == hash(arch)
    assert ArchConfig.model_validate_json(arch.model_dump_json()) == arch


@pytest.mark.parametrize("name", PRESETS)
def test_yaml_round_trip_of_presets(name: str, tmp_path: Path) -> None:
    assert_survives_writing(ArchConfig.preset(name), tmp_path)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_yaml_round_trip_of_every_kind_of_block(variant: dict[str, object], tmp_path: Path) -> None:
    assert_survives_writing(tiny_arch(**variant), tmp_path)


@quick_to_fail
@given(arch=VALID_ARCHS)
def test_yaml_round_trip(arch: ArchConfig, tmp_path: Path) -> None:
    assert_survives_writing(arch, tmp_path)


@quick_to_fail
@given(arch=VALID_ARCHS)
def test_every_derived_size_is_one_a_network_can_have(arch: ArchConfig) -> None:
    for index, stage in enumerate(arch.stages):
        assert stage.head_dim * stage.heads == stage.width
        assert min(stage.v_dim, stage.ffn_dim, *arch.stem_widths, *arch.grids[index]) >= 1
        assert 1 <= arch.window_side(index) <= stage.window


@pytest.mark.parametrize("name", PRESETS)
def test_json_schema_accepts_presets(name: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    arch = ArchConfig.preset(name)

    for valid in (arch, changed(arch, image_size=[224, 256])):
        jsonschema.validate(valid.model_dump(mode="json"), ArchConfig.model_json_schema())
    for wrong, match in (({"num_classes": "none"}, "none"), ({"stem_ratio": 9}, "9 is greater than the maximum of 2")):
        with pytest.raises(jsonschema.ValidationError, match=match):
            jsonschema.validate(arch.model_dump(mode="json") | wrong, ArchConfig.model_json_schema())


def test_json_schema_describes_every_field() -> None:
    schema = ArchConfig.model_json_schema()

    for model in (schema, schema["$defs"]["StageConfig"]):
        assert all(field["description"] for field in model["properties"].values())


# The key: equal exactly for equal networks

M4 = changed(ArchConfig.preset("m4"), image_size=256)

OTHER_STAGE = {
    "width": 192,
    "depth": 4,
    "heads": 2,
    "qk_dim": 8,
    "v_ratio": 0.5,
    "ffn_ratio": 3.0,
    "cascade": False,
    "q_kernels": [7, 5, 3, 5],
    "window": 3,
    "mixer": "linear",
    "ffn_count": 2,
    "merge_ratio": 2.0,
}
OTHER_TOP = {
    "image_size": [256, 224],
    "in_channels": 1,
    "num_classes": 0,
    "stem_ratio": 0.5,
    "stages": ArchConfig.preset("m0").stages,
}


def test_every_field_is_tried() -> None:
    assert set(OTHER_STAGE) == set(StageConfig.model_fields)
    assert set(OTHER_TOP) == set(ArchConfig.model_fields)


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("field", OTHER_STAGE)
def test_key_follows_every_field_of_a_stage(field: str, stage: int) -> None:
    other = changed(M4, stage, **{field: OTHER_STAGE[field]})
    unused = stage == 0 and field == "merge_ratio"  # nothing is merged into the first stage

    assert (other.key == M4.key) == unused


@pytest.mark.parametrize("field", OTHER_TOP)
def test_key_follows_every_field_at_the_top(field: str) -> None:
    assert changed(M4, **{field: OTHER_TOP[field]}).key != M4.key


SAME_NETWORK = {
    "a kernel without a head": ({"heads": 2}, {"heads": 2, "q_kernels": [7, 5, 9, 9]}),
    "kernels of heads computed together": ({"cascade": False}, {"cascade": False, "q_kernels": [7, 9]}),
    "a cascade of one head": ({"heads": 1, "cascade": True}, {"heads": 1, "cascade": False}),
    "a window as large as the map or larger": ({"window": 8}, {"window": 64}),
    "ratios that round to the same width": (
        {"v_ratio": 0.5, "ffn_ratio": 2, "merge_ratio": 4},
        {"v_ratio": 0.51, "ffn_ratio": 2.01, "merge_ratio": 4.01},
    ),
    "a value ratio that rounds to 1": ({}, {"v_ratio": 1.01}),
    "attention fields without attention": (
        {"mixer": "none"},
        {
            "mixer": "none",
            "heads": 3,
            "qk_dim": 8,
            "v_ratio": 2,
            "window": 3,
            "cascade": False,
            "q_kernels": [3],
        },
    ),
    "softmax fields in linear attention": (
        {"mixer": "linear"},
        {"mixer": "linear", "window": 3, "cascade": False, "q_kernels": [3]},
    ),
}


@pytest.mark.parametrize(("one", "other"), SAME_NETWORK.values(), ids=SAME_NETWORK)
def test_key_ignores_what_the_network_does_not_use(one: dict[str, Any], other: dict[str, Any]) -> None:
    a, b = changed(M4, 1, **one), changed(M4, 1, **other)

    assert a != b
    assert a.key == b.key


def test_key_never_changes() -> None:
    """Run folders and caches hold keys: a new one would orphan them."""
    assert ArchConfig.preset("m0").key == "14e2aca01d59"


def test_architectures_can_be_members_of_a_set() -> None:
    assert len({ArchConfig.preset("m0"), ArchConfig.preset("m0"), ArchConfig.preset("m1")}) == 2
