"""Where the time of one network goes: by kind of operator and by block, from ONNX Runtime's own trace.

The trace times each node, but also its own bookkeeping: two to three microseconds a node, as much as a reshape or a
small addition costs at batch 1. So the same graph runs untraced in turns, and what the trace has too much is taken off
every node alike: shares then add up to the time that a user gets. A network whose operators are small looks far more
memory-bound without that.

"Memory-bound" is used as in figure 2 of arXiv 2305.07027: everything but convolutions and matrix products, that is
reshapes, transposes, splits, copies, changes of layout, element-wise operators, softmax, norms and pooling.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from evit_nas.config import Conditions
from evit_nas.errors import MeasurementError, UsageError
from evit_nas.latency.local import last_line, python, run_alone
from evit_nas.latency.machine import check_threads
from evit_nas.latency.measurable import resolved
from evit_nas.latency.onnx_backend import graph_of
from evit_nas.latency.values import Measurable

TIMEOUT_S = 300.0  # a network of 100 ms takes about ten seconds
_SUFFIX = "_kernel_time"
_PRODUCT = re.compile("Conv|Gemm|MatMul|Attention|Einsum")
_VIEWS = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"}  # move no bytes
# modules are written in small letters in node names, operators and ONNX Runtime's suffixes are not
_PATH = re.compile(r"(?:fused )?/?((?:[a-z_][^/]*/)*)")


class Part(BaseModel):
    """What one kind of operator, one block or the whole network takes of an inference."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    nodes: int
    """Nodes of the optimised graph."""
    time_ms: float
    share: float
    """Of the network's time."""
    memory_bound_share: float
    """Of this part's time; see the head of the module."""
    macs: int
    """Multiply-accumulates of convolutions and matrix products as they are computed, padded channels included."""
    bytes: int
    """Read and written by its nodes, weights included, as if nothing stayed in a cache."""

    @property
    def gflops(self) -> float:
        """Billions of floating point operations a second; a MAC is two."""
        return 2 * self.macs / self.time_ms / 1e6 if self.time_ms else 0.0

    @property
    def intensity(self) -> float:
        """Floating point operations for each byte moved."""
        return 2 * self.macs / self.bytes if self.bytes else 0.0


class Profile(BaseModel):
    """One network's time, taken apart in two ways."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    total: Part
    """The network as a whole; its time is that of the untraced runs."""
    ops: tuple[Part, ...]
    """By kind of operator, the most expensive first."""
    blocks: tuple[Part, ...]
    """By block, in order of execution; a graph whose nodes are not named by path is one block, "graph"."""
    overhead: float
    """How much longer a traced run took, relative to an untraced one: 1.0 is twice as long."""
    gemm_peak_gflops: float
    """What one large matrix product reaches in ONNX Runtime under the same conditions."""
    conditions: Conditions

    def __str__(self) -> str:
        total, peak = self.total, self.gemm_peak_gflops
        return (
            f"{total.time_ms:.2f} ms, {total.memory_bound_share:.0%} of it memory-bound; {total.gflops:.0f} GFLOP/s "
            f"are {total.gflops / peak:.0%} of a large matrix product's {peak:.0f}. "
            f"Tracing took {self.overhead:.0%} more time, which is not in these figures."
        )


def profile(network: Measurable, conditions: Conditions) -> Profile:
    """Runs `network` in a fresh process, traced and untraced in turns.

    Raises:
        UsageError: the device has no trace by operator, or the machine not so many cores.
        MeasurementError: the runtime rejected the network, died or ran out of time.
    """
    if conditions.family != "cpu":
        raise UsageError(
            f"a profile is read from ONNX Runtime's trace, which device '{conditions.device}' does not write; "
            "use --device cpu or cpu:N."
        )
    check_threads(conditions)
    with TemporaryDirectory() as folder:
        graph = graph_of(resolved(network, conditions.family), conditions.batch)
        if isinstance(graph, bytes):
            path = Path(folder) / "network.onnx"
            path.write_bytes(graph)
            graph = str(path)
        command = python("-m", "evit_nas.latency.profile_child", graph, conditions.model_dump_json())
        done = run_alone(command, conditions.threads, TIMEOUT_S, "the profile")
    if done.returncode:
        # 1 is the child's own sys.exit
        kind = {1: "rejected", -signal.SIGKILL: "out of memory"}.get(done.returncode, "crashed")
        raise MeasurementError(f"ONNX Runtime could not profile the network: {last_line(done.stderr)}", kind)
    return Profile.model_validate_json(done.stdout.splitlines()[-1])


@dataclass(frozen=True)
class Node:
    """One operator as the trace has it."""

    name: str
    kind: str
    macs: int
    bytes: int


def memory_bound(kind: str) -> bool:
    """Whether operators of `kind` are neither convolutions, depthwise ones included, nor matrix products."""
    return not _PRODUCT.search(kind)


def take_apart(
    trace: Sequence[Mapping[str, Any]],
    plain_ms: float,
    overhead: float,
    gemm_peak_gflops: float,
    conditions: Conditions,
) -> Profile:
    """The profile that a trace holds.

    Args:
        trace: events as ONNX Runtime writes them; of its runs every second one counts, the others fill the caches.
        plain_ms: one untraced run.
        overhead: see Profile.
        gemm_peak_gflops: see Profile.
        conditions: what both ran under.
    """
    runs = list(_runs(trace))[1::2]
    nodes = [_node(event) for event in runs[0]]
    # (runs, nodes); the trace counts in microseconds
    times_ms = _times_ms(np.array([[event["dur"] for event in run] for run in runs]) / 1e3, plain_ms)
    blocks = blocks_of([node.name for node in nodes])

    def part(name: str, chosen: Sequence[bool]) -> Part:
        picked = [(node, float(ms)) for node, ms, is_in in zip(nodes, times_ms, chosen, strict=True) if is_in]
        time_ms = sum(ms for _, ms in picked)
        return Part(
            name=name,
            nodes=len(picked),
            time_ms=time_ms,
            share=time_ms / plain_ms,
            memory_bound_share=sum(ms for node, ms in picked if memory_bound(node.kind)) / time_ms if time_ms else 0.0,
            macs=sum(node.macs for node, _ in picked),
            bytes=sum(node.bytes for node, _ in picked),
        )

    kinds = dict.fromkeys(node.kind for node in nodes)
    ops = [part(kind, [node.kind == kind for node in nodes]) for kind in kinds]
    return Profile(
        total=part("total", [True] * len(nodes)),
        ops=tuple(sorted(ops, key=lambda op: -op.time_ms)),
        blocks=tuple(part(block, [own == block for own in blocks]) for block in dict.fromkeys(blocks)),
        overhead=overhead,
        gemm_peak_gflops=gemm_peak_gflops,
        conditions=conditions,
    )


def blocks_of(names: Sequence[str]) -> list[str]:
    """The block of each node, in order of execution: the first two modules of the path in its name.

    What ONNX Runtime adds by itself (changes of layout, reshapes around a product) has no path and prepares what
    comes next, so it counts to the next node's block. A node that a path puts outside all modules is in "other".
    """
    own = [_module(name) for name in names]
    if not any(own):
        return ["graph"] * len(names)
    last = next(block for block in reversed(own) if block)
    blocks: list[str] = []
    for name, block in zip(reversed(names), reversed(own), strict=True):
        blocks.append(block or ("other" if "/" in name else blocks[-1] if blocks else last))
    return blocks[::-1]


def _module(name: str) -> str:
    match = _PATH.match(name)
    modules = match[1].split("/") if match else []
    # PyTorch's exporter writes stages/stages.0/blocks/blocks.1: a list's own name says nothing
    return ".".join([name for name, inner in pairwise(modules) if not inner.startswith(f"{name}.")][:2])


def _runs(trace: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """The node events of each run; a run's own event comes after those of its nodes."""
    events: list[Mapping[str, Any]] = []
    for event in trace:
        if event["name"] == "model_run":
            yield events
            events = []
        elif event["cat"] == "Node" and event["name"].endswith(_SUFFIX):
            events.append(event)


def _times_ms(traced_ms: np.ndarray, plain_ms: float) -> np.ndarray:
    """(nodes,) times that add up to `plain_ms`, from traced ones of (runs, nodes).

    The trace's cost is the same for every node, and no more than the cheapest of them; any rest is shared out.
    """
    runs = len(traced_ms)
    # the mean of the middle half: as robust as a median, and finer than the whole microseconds of the trace
    middle = np.sort(traced_ms, axis=0)[runs // 4 : runs - runs // 4].mean(axis=0)
    cost = min(max(0.0, float(middle.sum() - plain_ms) / len(middle)), float(middle.min()))
    net: np.ndarray = middle - cost
    net *= plain_ms / net.sum()
    return net


def _node(event: Mapping[str, Any]) -> Node:
    facts = event["args"]
    kind, output = facts["op_name"], next(iter(_shapes(facts["output_type_shape"])), [])
    moved = sum(int(facts[size]) for size in ("activation_size", "parameter_size", "output_size"))
    macs, unseen = _work(kind, _shapes(facts["input_type_shape"]), output)
    if unseen:
        moved += unseen * int(facts["output_size"]) // prod(output)  # elements are as wide as those of the output
    return Node(event["name"].removesuffix(_SUFFIX), kind, macs, 0 if kind in _VIEWS else moved)


def _shapes(entries: Sequence[Mapping[str, list[int]]]) -> list[list[int]]:
    """From [{"float": [1, 3, 224, 224]}, ...]; an input that is left out is an empty entry."""
    return [shape for entry in entries for shape in entry.values()]


def _work(kind: str, inputs: Sequence[Sequence[int]], output: Sequence[int]) -> tuple[int, int]:
    """MACs of a node, and the elements of its weight that the trace does not show because they were packed."""
    if "Conv" in kind:
        weight = next((shape for shape in inputs[1:] if len(shape) > 2), [0, 0])  # QLinearConv has scales before it
        return prod(inputs[0] if kind == "ConvTranspose" else output) * prod(weight[1:]), 0
    if "Gemm" in kind or "MatMul" in kind:
        first = inputs[0]
        # by size: FusedMatMul may read its first input transposed, whose last side is not the depth then
        depth = prod(first) // prod(output[:-1]) if len(first) == len(output) else first[-1]
        shown = any(len(shape) > 1 for shape in inputs[1:])  # a bias has one side
        return prod(output) * depth, 0 if shown else depth * output[-1]
    return 0, 0


def rows(profiles: Mapping[str, Profile]) -> list[dict[str, Any]]:
    """For programs: one row for each network as a whole, each kind of operator and each block."""
    return [
        {
            "network": name,
            "by": by,
            **part.model_dump(),
            "gflops": part.gflops,
            "intensity": part.intensity,
            "of_gemm_peak": part.gflops / each.gemm_peak_gflops,
        }
        for name, each in profiles.items()
        for by, parts in (("network", (each.total,)), ("operator", each.ops), ("block", each.blocks))
        for part in parts
    ]


def operator_cells(profiles: Mapping[str, Profile]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a table of operator kinds, networks side by side; what is marked * is memory-bound."""
    cells = {
        name: {f"{op.name} *" if memory_bound(op.name) else op.name: _operator(op) for op in each.ops}
        | {"memory-bound *": ["", f"{100 * each.total.memory_bound_share:.1f}", ""], "total": _operator(each.total)}
        for name, each in profiles.items()
    }
    return _side_by_side("operator", ("ms", "%", "nodes"), cells)


def block_cells(profiles: Mapping[str, Profile]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a table of blocks, networks side by side; "peak" is the share of the GEMM peak."""
    cells = {
        name: {part.name: _block(part, each.gemm_peak_gflops) for part in (*each.blocks, each.total)}
        for name, each in profiles.items()
    }
    return _side_by_side("block", ("ms", "FLOP/B", "peak"), cells)


def _operator(part: Part) -> list[str]:
    return [f"{part.time_ms:.2f}", f"{100 * part.share:.1f}", str(part.nodes)]


def _block(part: Part, peak: float) -> list[str]:
    return [f"{part.time_ms:.2f}", f"{part.intensity:.1f}", f"{part.gflops / peak:.0%}"]


def _side_by_side(
    what: str, figures: Sequence[str], cells: Mapping[str, Mapping[str, list[str]]]
) -> tuple[list[str], list[list[str]]]:
    """`cells` are those of each network by row; a row that a network does not have is dashes."""
    columns = [what] + [f"{'' if i else name}\n{figure}" for name in cells for i, figure in enumerate(figures)]
    absent = ["-"] * len(figures)
    labels = _merged([list(own) for own in cells.values()])
    return columns, [[label, *(cell for own in cells.values() for cell in own.get(label, absent))] for label in labels]


def _merged(lists: Sequence[Sequence[str]]) -> list[str]:
    """All names once, each after the one that precedes it in its own list."""
    merged: list[str] = []
    for names in lists:
        place = 0
        for name in names:
            if name not in merged:
                merged.insert(place, name)
            place = merged.index(name) + 1
    return merged
