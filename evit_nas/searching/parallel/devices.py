"""The devices of a cluster: a measurement is a task that needs the one `evit_device:NAME` of a node.

Ray gives that resource to one task at a time, so nothing else is measured there meanwhile, of whichever search. Scores
and trainings keep off the core that measures, if their node has a device (`settle`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from evit_nas.arch import ArchConfig
from evit_nas.config import Conditions
from evit_nas.errors import LostLink, UsageError
from evit_nas.latency import DEVICES, Device, Latency, Measurable, Protocol, open_device
from evit_nas.latency.board import JOB_LIMIT_S
from evit_nas.latency.local import most_visits
from evit_nas.latency.machine import measuring_core
from evit_nas.latency.runtimes import RUNTIMES

PREFIX = "evit_device:"
RETRIES = 3  # of a measurement whose node died, if another node offers the device or it comes back
PATIENCE_S = 600.0  # beyond what a measurement may take: the node may restart, or another search may measure there

Opener = Callable[[Conditions], Device]


def resource(conditions: Conditions) -> str:
    """What a node with that device offers once: `cpu:4` is `cpu` with other settings, `cuda:1` another device."""
    runtime = RUNTIMES.get(conditions.family)
    same = runtime is not None and runtime.argument == "threads"
    return PREFIX + (conditions.family if same else conditions.device)


class ClusterDevice(Device):
    """A device of some node.

    Raises:
        UsageError: no node offers it.
    """

    def __init__(self, conditions: Conditions) -> None:
        self.conditions = conditions
        name = resource(conditions)
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        offered = sorted(found for found in resources if found.startswith(PREFIX))
        if name not in offered:
            raise UsageError(
                f"no node of the cluster offers the device '{conditions.device}' (the cluster has "
                f"{', '.join(offered) or 'none at all'}). On the machine that has it: "
                f"ray start --address=HEAD:6379 --num-cpus=CORES-1 --resources='{{\"{name}\": 1}}'"
            )
        # no core of those for trials: the node keeps one for its device
        task = ray.remote(num_cpus=0, resources={name: 1}, max_retries=RETRIES)
        self._tasks = {function: task(function) for function in (_context, _measure, _peak_memory_mb)}
        self._opener: Opener = DEVICES[conditions.family]
        runtime = RUNTIMES.get(conditions.family)
        self._visit_s = runtime.timeout_s if runtime else JOB_LIMIT_S
        self._context: dict[str, str] = self._ask(_context)

    def measure(self, network: Measurable, protocol: Protocol) -> tuple[Latency, dict[str, Any]]:
        limit_s = self._visit_s * most_visits(protocol)
        latency, samples, context = self._ask(_measure, network, protocol, limit_s=limit_s)
        if context != self._context:
            raise LostLink(
                f"'{self.conditions.device}' is another machine than when the search began: figures would not compare. "
                f"{self._context} then, {context} now. Bring the node back and resume the run."
            )
        return latency, samples

    def context(self) -> dict[str, str]:
        return self._context

    def peak_memory_mb(self, arch: ArchConfig) -> float | None:
        """Peak resident memory of the network in a fresh process on the device's node; None where it cannot be had."""
        peak_mb: float | None = self._ask(_peak_memory_mb, arch, limit_s=self._visit_s)
        return peak_mb

    def close(self) -> None:
        """Nothing: the process that holds the device ends with the driver's other ones."""

    def _ask(self, function: Callable[..., Any], *args: Any, limit_s: float = 0.0) -> Any:
        patience_s = PATIENCE_S + limit_s
        answer = self._tasks[function].remote(self._opener, self.conditions, *args)
        try:
            return ray.get(answer, timeout=patience_s)
        except RayTaskError as error:
            raise error.cause from None
        except GetTimeoutError:
            ray.cancel(answer, force=True)
            reason = f"did not answer for {patience_s:.0f} s"
        except RayError as error:
            reason = f"is lost ({type(error).__name__})"
        raise LostLink(
            f"the node with the device '{self.conditions.device}' {reason}. Bring it back and resume the run."
        )


@cache
def _opened(opener: Opener, conditions: str) -> Device:
    """The device, held open by this process: Ray keeps it for the next measurement."""
    wanted = Conditions.model_validate_json(conditions)
    DEVICES.setdefault(wanted.family, opener)  # one that a program added is in its own table alone
    return open_device(wanted)


def _context(opener: Opener, conditions: Conditions) -> dict[str, str]:
    return _opened(opener, conditions.model_dump_json()).context()


def _measure(
    opener: Opener, conditions: Conditions, network: Measurable, protocol: Protocol
) -> tuple[Latency, dict[str, Any], dict[str, str]]:
    device = _opened(opener, conditions.model_dump_json())
    return *device.measure(network, protocol), device.context()


def _peak_memory_mb(opener: Opener, conditions: Conditions, arch: ArchConfig) -> float | None:
    from evit_nas.latency.memory import peak_memory_mb

    return peak_memory_mb(arch, conditions)


@cache
def settle() -> None:
    """Makes a process that runs trials a good neighbour: off the core that measures, if its node has a device, and off
    the GPUs that Ray has not assigned to it."""
    import torch

    context = ray.get_runtime_context()
    mine = context.get_assigned_resources()  # type: ignore[no-untyped-call]
    torch.set_num_threads(max(1, int(mine.get("CPU", 1))))
    if not mine.get("GPU"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # which Ray leaves as it is where a trial asks for none
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    here = next(node for node in nodes if node["NodeID"] == context.get_node_id())
    if any(name.startswith(PREFIX) for name in here["Resources"]) and hasattr(os, "sched_setaffinity"):
        cores = os.sched_getaffinity(0) - measuring_core() or os.sched_getaffinity(0)
        for thread in (0, os.getpid()):  # this one runs the first trial, the main one starts those of the others
            os.sched_setaffinity(thread, cores)
