"""A profile's figures on traces with a known answer, its blocks on real graphs, and names that change nothing else."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from evit_nas.arch import ArchConfig
from evit_nas.config import Conditions
from evit_nas.errors import MeasurementError, UsageError
from evit_nas.latency.profile import (
    Profile,
    block_cells,
    blocks_of,
    memory_bound,
    operator_cells,
    profile,
    rows,
    take_apart,
)
from evit_nas.latency.profile_child import run
from evit_nas.network.cost import cost
from evit_nas.network.onnx_graph import build_onnx
from tests.networks import VARIANTS, tiny_arch

CPU = Conditions()


def event(name: str, kind: str, dur_us: int, inputs: list[list[int]], output: list[int], weights: int = 0) -> dict:
    """A node of float32 in a trace; the last `weights` inputs are constants."""
    sizes = [4 * int(np.prod(shape)) for shape in inputs]
    facts = {
        "op_name": kind,
        "activation_size": str(sum(sizes[: len(sizes) - weights])),
        "parameter_size": str(sum(sizes[len(sizes) - weights :])),
        "output_size": str(4 * int(np.prod(output))),
        "input_type_shape": [{"float": shape} for shape in inputs],
        "output_type_shape": [{"float": output}],
    }
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": dur_us, "args": facts}


def trace_of(*runs: list[dict]) -> list[dict]:
    """A trace of `runs`, each of them after a run that is far slower and does not count."""
    end = {"cat": "Session", "name": "model_run", "dur": 0, "args": {}}
    start = {"cat": "Session", "name": "session_initialization", "dur": 9, "args": {}}
    cold = [[node | {"dur": 1000} for node in nodes] for nodes in runs]
    return [start] + [e for pair in zip(cold, runs, strict=True) for nodes in pair for e in (*nodes, end)]


def nodes_lasting(conv: int, reorder: int, reshape: int, gemm: int) -> list[dict]:
    return [
        event("stem/Conv_0_nchwc", "Conv", conv, [[1, 16, 8, 8], [32, 16, 3, 3], [32]], [1, 32, 4, 4], weights=2),
        event("ReorderOutput_token_1", "ReorderOutput", reorder, [[1, 32, 4, 4]], [1, 4, 4, 32]),
        event("head/Reshape_1", "Reshape", reshape, [[1, 4, 4, 32]], [16, 32]),
        event("head/MatMul_2/MatMulAddFusion", "Gemm", gemm, [[16, 32], [10]], [16, 10], weights=1),
    ]


@pytest.fixture
def by_hand() -> Profile:
    """Traced times 52, 11, 3 and 42 us; 100 us untraced, so that tracing cost (108 - 100) / 4 = 2 us a node."""
    trace = trace_of(*[nodes_lasting(52, 11, 3, 42)] * 8)
    return take_apart(trace, plain_ms=0.1, overhead=0.5, gemm_peak_gflops=10.0, conditions=CPU)


def test_shares_are_those_computed_by_hand(by_hand: Profile) -> None:
    assert [op.name for op in by_hand.ops] == ["Conv", "Gemm", "ReorderOutput", "Reshape"]
    assert [op.nodes for op in by_hand.ops] == [1, 1, 1, 1]
    assert [op.share for op in by_hand.ops] == pytest.approx([0.5, 0.4, 0.09, 0.01])
    assert [op.time_ms for op in by_hand.ops] == pytest.approx([0.05, 0.04, 0.009, 0.001])
    assert [op.memory_bound_share for op in by_hand.ops] == pytest.approx([0, 0, 1, 1])
    assert {block.name: block.share for block in by_hand.blocks} == pytest.approx({"stem": 0.5, "head": 0.5})
    assert by_hand.blocks[1].memory_bound_share == pytest.approx(0.2)
    assert by_hand.total.memory_bound_share == pytest.approx(0.1)
    assert by_hand.total.time_ms == pytest.approx(0.1)


def test_work_and_traffic_are_those_computed_by_hand(by_hand: Profile) -> None:
    stem, head = by_hand.blocks
    assert stem.macs == 32 * 4 * 4 * 16 * 3 * 3
    assert stem.bytes == 4 * (16 * 8 * 8 + 32 * 16 * 9 + 32 + 32 * 4 * 4)
    assert head.macs == 16 * 10 * 32
    packed = 32 * 10  # the product's weight, which the trace does not list
    assert head.bytes == 4 * (2 * 32 * 4 * 4 + 16 * 32 + 10 + 16 * 10 + packed)  # the reshape moves nothing
    assert stem.gflops == pytest.approx(2 * 73728 / 50e3)
    assert head.intensity == pytest.approx(2 * 5120 / head.bytes)


@pytest.mark.parametrize(
    ("kind", "inputs", "output", "macs"),
    [
        ("Conv", [[1, 64, 14, 14], [64, 1, 3, 3], [64]], [1, 64, 14, 14], 64 * 196 * 9),  # depthwise
        ("ConvTranspose", [[1, 8, 4, 4], [8, 6, 2, 2]], [1, 6, 8, 8], 8 * 16 * 6 * 4),
        ("MatMul", [[2, 49, 49], [2, 49, 16]], [2, 49, 16], 2 * 49 * 16 * 49),
        ("MatMul", [[4, 49, 16]], [4, 49, 48], 4 * 49 * 48 * 16),  # packed weight
        ("MatMul", [[8, 16], [3, 16, 5]], [3, 8, 5], 3 * 8 * 5 * 16),  # one matrix for all images
        ("FusedMatMul", [[4, 16, 49], [4, 16, 20]], [4, 49, 20], 4 * 49 * 20 * 16),  # first one transposed
        ("Softmax", [[4, 49, 49]], [4, 49, 49], 0),
    ],
)
def test_multiply_accumulates_follow_from_shapes(kind: str, inputs: Any, output: Any, macs: int) -> None:
    trace = trace_of([event("node", kind, 9, inputs, output)])
    assert take_apart(trace, 0.01, 0.0, 1.0, CPU).total.macs == macs


def test_an_interrupted_run_moves_nothing() -> None:
    calm = [nodes_lasting(52, 11, 3, 42)] * 7
    trace = trace_of(*calm, nodes_lasting(52, 5000, 3, 42))
    assert take_apart(trace, 0.1, 0.0, 1.0, CPU).total.memory_bound_share == pytest.approx(0.1)


def test_an_untraced_run_that_was_disturbed_leaves_the_shares_as_traced() -> None:
    result = take_apart(trace_of(*[nodes_lasting(52, 11, 3, 42)] * 4), 0.2, 0.0, 1.0, CPU)
    assert [op.share for op in result.ops] == pytest.approx([52 / 108, 42 / 108, 11 / 108, 3 / 108])


def test_no_node_takes_less_than_nothing() -> None:
    """Nodes add up to 108 us traced and 20 us untraced: no more than the cheapest one is taken off each."""
    result = take_apart(trace_of(*[nodes_lasting(52, 11, 3, 42)] * 4), 0.02, 0.0, 1.0, CPU)
    assert [op.share for op in result.ops] == pytest.approx([49 / 96, 39 / 96, 8 / 96, 0])


@pytest.mark.parametrize(
    ("names", "blocks"),
    [
        (["stem/Conv_0_nchwc", "ReorderOutput_token_4", "head/Gemm_1"], ["stem", "head", "head"]),
        (["stages.1.blocks.0/MatMul_7/MatMulAddFusion", "gemm_output_reshape"], ["stages.1.blocks.0"] * 2),
        (["/stages/stages.1/blocks/blocks.0/mixer/Add", "/head/Gemm"], ["stages.1.blocks.0", "head"]),
        (["/patch_embed/conv1/conv/Conv", "/stages/stages.0/Add"], ["patch_embed.conv1", "stages.0"]),
        (["fused /patch_embed/conv1/conv/Conv", "/Add_3"], ["patch_embed.conv1", "other"]),
        (["Conv_0", "node_relu_1"], ["graph", "graph"]),
    ],
)
def test_the_block_is_read_from_the_path_or_from_what_comes_next(names: list[str], blocks: list[str]) -> None:
    assert blocks_of(names) == blocks


def optimised(model: onnx.ModelProto, path: Path) -> onnx.GraphProto:
    """The graph that ONNX Runtime makes of `model` and runs."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(path).graph


def block_names(arch: ArchConfig) -> list[str]:
    names = ["stem"]
    for index, stage in enumerate(arch.stages):
        names += [f"stages.{index}.downsample"] * (index > 0)
        names += [f"stages.{index}.blocks.{block}" for block in range(stage.depth)]
    return [*names, "head"]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_optimised_node_lies_in_the_block_that_it_serves(name: str, tmp_path: Path) -> None:
    """A node between two of one block lies in it; a change of layout at a border lies on one of its sides."""
    arch = tiny_arch(**VARIANTS[name])
    nodes = optimised(build_onnx(arch), tmp_path / "optimised.onnx").node
    blocks = blocks_of([node.name for node in nodes])
    assert list(dict.fromkeys(blocks)) == block_names(arch)
    maker = {value: block for node, block in zip(nodes, blocks, strict=True) for value in node.output}
    users: dict[str, set[str]] = {}
    for node, block in zip(nodes, blocks, strict=True):
        for value in node.input:
            users.setdefault(value, set()).add(block)
    for node, block in zip(nodes, blocks, strict=True):
        assert block in {maker.get(node.input[0], "stem"), *(users.get(node.output[0], {"head"}))}, node.name


@pytest.mark.parametrize("name", ["cascade", "parallel", "linear", "padded window"])
def test_names_change_neither_the_outputs_nor_what_is_run(name: str, tmp_path: Path) -> None:
    arch = tiny_arch(**VARIANTS[name])
    named = build_onnx(arch)
    assert len({node.name for node in named.graph.node}) == len(named.graph.node)
    anonymous = anonymised(named)
    x = np.random.default_rng(0).standard_normal((1, 3, 64, 64), np.float32)
    graphs = [named, anonymous]
    outputs = [ort.InferenceSession(graph.SerializeToString()).run(None, {"input": x})[0] for graph in graphs]
    np.testing.assert_array_equal(*outputs)
    ops = [Counter(node.op_type for node in optimised(graph, tmp_path / "graph.onnx").node) for graph in graphs]
    assert ops[0] == ops[1]


def anonymised(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with nodes that have no names and values that are numbered."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    values = [value for node in model.graph.node for value in node.output if value != "logits"]
    numbers = {value: f"v{i}" for i, value in enumerate(values)}
    for node in copy.graph.node:
        node.name = ""
        node.input[:] = [numbers.get(value, value) for value in node.input]
        node.output[:] = [numbers.get(value, value) for value in node.output]
    return copy


@pytest.fixture(scope="module")
def profiles() -> dict[str, Profile]:
    """Of real runs: the network with cascaded attention, and without a mixer."""
    return {
        "cascade": profile(tiny_arch(), CPU),
        "none": run(build_onnx(tiny_arch(mixer="none")).SerializeToString(), CPU),
    }


def test_parts_add_up_to_the_network(profiles: dict[str, Profile]) -> None:
    for each in profiles.values():
        for parts in (each.ops, each.blocks):
            assert sum(part.share for part in parts) == pytest.approx(1)
            assert sum(part.time_ms for part in parts) == pytest.approx(each.total.time_ms)
            assert sum(part.nodes for part in parts) == each.total.nodes
            assert sum(part.macs for part in parts) == each.total.macs
            assert sum(part.bytes for part in parts) == each.total.bytes
        assert each.total.share == pytest.approx(1)
        assert [block.name for block in each.blocks] == block_names(tiny_arch())


def test_the_work_found_in_the_trace_is_that_of_the_network(profiles: dict[str, Profile]) -> None:
    """Padded channels and pairs of pixels in the stem only add to it."""
    assert 1 <= profiles["cascade"].total.macs / cost(tiny_arch()).macs < 1.5


def test_attention_brings_the_nodes_that_move_memory(profiles: dict[str, Profile]) -> None:
    moving = {name: sum(op.nodes for op in each.ops if memory_bound(op.name)) for name, each in profiles.items()}
    assert moving["cascade"] > 5 * moving["none"]
    assert profiles["cascade"].total.memory_bound_share > profiles["none"].total.memory_bound_share


def test_a_large_product_is_what_nothing_else_exceeds(profiles: dict[str, Profile]) -> None:
    for each in profiles.values():
        assert 0 < each.total.gflops < each.gemm_peak_gflops


def test_networks_stand_side_by_side_in_80_columns(profiles: dict[str, Profile]) -> None:
    from rich.console import Console

    from evit_nas.console import make_table

    for cells in (operator_cells, block_cells):
        columns, lines = cells(profiles)
        assert {len(line) for line in lines} == {len(columns)}
        assert lines[-1][0] == "total"
        labels = [line[0] for line in lines]
        assert len(labels) == len(set(labels))
        console = Console(width=80)
        with console.capture() as capture:
            console.print(make_table("Profile", columns, lines))
        shown = [line.split()[0] for line in capture.get().splitlines() if line.strip()]
        assert {label.split()[0] for label in labels} <= set(shown)  # none is broken over two lines
    labels = [line[0] for line in operator_cells(profiles)[1]]
    softmax = operator_cells(profiles)[1][labels.index("Softmax *")]
    assert softmax[4:] == ["-", "-", "-"]  # no attention, no softmax


def test_a_block_that_only_one_network_has_stands_in_its_place(by_hand: Profile) -> None:
    stem, head = by_hand.blocks
    longer = by_hand.model_copy(update={"blocks": (stem, stem.model_copy(update={"name": "body"}), head)})
    labels = [line[0] for line in block_cells({"short": by_hand, "long": longer})[1]]
    assert labels == ["stem", "body", "head", "total"]


def test_rows_for_programs_hold_each_part_of_each_network(by_hand: Profile) -> None:
    table = rows({"a": by_hand, "b": by_hand})
    assert len(table) == 2 * (1 + 4 + 2)
    assert len({tuple(row) for row in table}) == 1  # one header for all
    whole = table[0]
    assert (whole["network"], whole["by"], whole["name"]) == ("a", "network", "total")
    assert whole["of_gemm_peak"] == pytest.approx(whole["gflops"] / 10.0)


def product_file(path: Path, batch: int) -> Path:
    """A file with two nodes: a product and a sigmoid."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (batch, 64)) for name in ("x", "y")]
    weight = helper.make_tensor("w", TensorProto.FLOAT, (64, 64), np.ones((64, 64), np.float32).tobytes(), raw=True)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Sigmoid", ["h"], ["y"])]
    graph = helper.make_graph(nodes, "product", values[:1], values[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_file_without_paths_in_its_names_is_one_block(tmp_path: Path) -> None:
    result = profile(product_file(tmp_path / "net.onnx", batch=1), CPU)
    assert {op.name: op.nodes for op in result.ops} == {"MatMul": 1, "Sigmoid": 1}
    assert [block.name for block in result.blocks] == ["graph"]
    assert result.total.macs == 64 * 64
    assert result.total.bytes == 4 * (64 + 64 * 64 + 64 + 64 + 64)


def test_a_network_that_cannot_run_is_one_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="fixed to batch 2, not 1"):
        profile(product_file(tmp_path / "two.onnx", batch=2), CPU)


def test_a_device_without_a_trace_names_the_ones_that_have_it() -> None:
    with pytest.raises(UsageError, match=r"'cuda:0' does not write; use --device cpu"):
        profile(tiny_arch(), Conditions(device="cuda:0"))
