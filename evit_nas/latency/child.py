"""The measuring process: reads one JSON request a line, answers one JSON line, until its input ends.

Its one argument is the `Conditions` as JSON. A request is {"network": ..., "protocol": ...}; an answer is {"latency":
..., "samples": ...} or {"error": text, "kind": as in errors.MeasurementError}. With the `cpu` devices
it needs onnxruntime, onnx and numpy; torch is imported only to measure torch.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from evit_nas.config import Conditions
from evit_nas.errors import EvitNasError, MeasurementError, in_a_line, out_of_memory
from evit_nas.latency.energy import energy_mj, meter
from evit_nas.latency.machine import LoadMeter, die_with_parent, every_core, machine_of, pin_to_one_core
from evit_nas.latency.measurable import decoded
from evit_nas.latency.protocol import (
    Canary,
    Network,
    RawSamples,
    Stopwatch,
    cpu_time,
    measure_rounds,
    pool,
    sample,
    visits_error,
    wall_time,
)
from evit_nas.latency.runtimes import RUNTIMES, Loaded, clock_of
from evit_nas.latency.values import Latency, Measurable, Protocol
from evit_nas.latency.yardstick import (
    BUSY_CORES,
    BUSY_SHARE,
    CANARIES,
    QUICKEST,
    WINDOW,
    Window,
    Yardstick,
    identity_of,
    kept,
    known,
    window_of,
)

MAX_DUEL = 0.05  # the canary measured against itself: beyond it, nothing measured in this process can be certified
MAX_FOREIGN_CORES = 0.5  # busy with other processes, where their time is counted too
MAX_VISIT_SPREAD = 0.05  # two visits further apart call for a third
SLOW_FACTOR = 1.5  # a canary's median over its quiet time beyond which even ratios are not to be trusted
SESSIONS = 3  # of each canary; odd: two canaries take turns, and of an even number each would show half only
# FIRST_MOMENTS of the yardstick, whose uncertainty falls from there on (docs/results/first_use.md)
LEARNING_S = 30.0  # spent on the canaries alone when a device is used for the first time
DUEL = Protocol(min_rounds=12, max_rounds=12)


class MeasuringBench:
    """Holds the canaries and the yardstick between requests; every request makes it better."""

    def __init__(self, conditions: Conditions) -> None:
        self._conditions, self._runtime = conditions, RUNTIMES[conditions.family]
        self._stopwatch, self._clock = stopwatch(conditions)
        self._version = self._runtime.version(conditions.family)
        self._machine = machine_of(conditions)
        loaded = [[self._runtime.load(arch, conditions).run for _ in range(SESSIONS)] for arch in CANARIES]
        self._yardstick = self._learned(loaded, identity_of(conditions))
        self._unit_ms, self._shape = self._yardstick.ms, self._yardstick.windows[0].shape  # as long as this one runs
        quiet_ms = self._yardstick.quiet_ms
        self._canaries = [Canary(sessions, ms * 1e6) for sessions, ms in zip(loaded, quiet_ms, strict=True)]
        alone = Canary(loaded[0][:1], quiet_ms[0] * 1e6)  # one session: several differ by where their memory lies
        duel = measure_rounds(alone.sessions[0], [alone], DUEL, self._stopwatch)
        self._duel = duel.median_ns / alone.quiet_ns
        self._meter = meter(conditions)
        self._slowdowns: list[float] = []  # not in a window yet
        self._beside_work = False  # at any time since these began

    def measure(self, network: Measurable, protocol: Protocol) -> tuple[Latency, dict[str, Any]]:
        """The protocol on one network, in as many sessions as it has visits, and in one more if two disagree."""
        load, others = LoadMeter(), LoadMeter(every_core())  # of the cores that measure, and of all, for the yardstick
        visits: list[RawSamples] = []
        while len(visits) < protocol.visits or (len(visits) == protocol.visits and _disagree(visits)):
            loaded = self._runtime.load(network, self._conditions)
            visits.append(measure_rounds(loaded.run, self._canaries, protocol, self._stopwatch, wall_time))
        rounds = pool(visits)
        self._see(rounds.slowdown, others)
        ratio, p90_ratio = (ns / 1e6 / self._unit_ms for ns in (rounds.median_ns, rounds.p90_ns))
        latency = Latency(
            median_ms=ratio * self._yardstick.ms,
            p90_ms=p90_ratio * self._yardstick.ms,
            rel_error=max(rounds.rel_error, visits_error(visits)),
            ratio=ratio,
            canary_ms=self._yardstick.ms,
            canary_error=self._yardstick.rel_error,
            yardstick=self._yardstick.identity,
            wall_ms=float(np.median(rounds.wall_ns)) / 1e6,
            wall_p90_ms=float(np.percentile(rounds.wall_ns, 90)) / 1e6,
            rounds=len(rounds.candidate_ns),
            conditions=self._conditions,
            input_shape=loaded.input_shape,
            clock=self._clock,
            runtime=self._version,
            machine=self._machine,
            noise=self._noise(float(np.median(rounds.slowdown)), load.foreign_cores()),
        )
        samples: dict[str, Any] = {
            "visits": [
                {
                    "candidate_ns": visit.candidate_ns.tolist(),
                    "slowdown": visit.slowdown.tolist(),
                    "wall_ns": visit.wall_ns.tolist(),
                }
                for visit in visits
            ]
        }
        if self._meter is not None and protocol.energy:
            samples["energy_mj"] = self._energy(loaded)
        return latency, samples

    def _energy(self, loaded: Loaded) -> float | None:
        """Millijoules per inference; None if the machine is too busy to tell them from what it draws anyway."""
        assert self._meter is not None
        try:
            return energy_mj(loaded.run, self._meter)
        except MeasurementError:
            return None

    def _noise(self, slowdown: float, foreign_cores: float | None) -> str:
        """Why the ratio is only an estimate; empty if it is none."""
        reasons = []
        slowdown *= self._unit_ms / self._yardstick.ms  # it was counted by the yardstick that this process began with
        if slowdown > SLOW_FACTOR:
            reasons.append(f"the canaries ran {slowdown:.2f} times as long as when quiet")
        # a GPU's events too: while the processor is late with the next kernel, their time goes on
        if self._clock != "cpu" and foreign_cores is not None and foreign_cores > MAX_FOREIGN_CORES:
            reasons.append(f"other processes kept {foreign_cores:.1f} cores busy")
        if abs(self._duel - 1) > MAX_DUEL:
            reasons.append(f"the canary against itself came out as {self._duel:.3f}")
        return "; ".join(reasons)

    def _learned(self, loaded: list[list[Network]], identity: str) -> Yardstick:
        """The yardstick as it is known; at the first use from samples of the canaries alone."""
        yardstick = known(identity)
        if yardstick is not None:
            return yardstick
        run_ns = [min(self._stopwatch(run, 3) for run in sessions) for sessions in loaded]  # about
        end = time.monotonic() + LEARNING_S
        yardstick = Yardstick.first(identity, self._window(loaded, run_ns))
        while time.monotonic() < end:
            yardstick = yardstick.seen(self._window(loaded, run_ns))
        return kept(yardstick)

    def _window(self, loaded: list[list[Network]], run_ns: list[float]) -> Window:
        """A window of nothing but canaries, whose sessions take turns."""
        others, rows = LoadMeter(every_core()), list[list[float]]()
        for turn in range(WINDOW):  # a multiple of SESSIONS: all of them count alike
            pairs = zip(loaded, run_ns, strict=True)
            rows.append([sample(sessions[turn % SESSIONS], ns, self._stopwatch) / 1e6 for sessions, ns in pairs])
        return window_of(rows, _busy(others))

    def _see(self, slowdowns: np.ndarray, others: LoadMeter) -> None:
        """Takes the canary samples of a measurement into the yardstick."""
        self._slowdowns += slowdowns.tolist()
        self._beside_work |= _busy(others)
        if len(self._slowdowns) >= WINDOW:
            ms = self._unit_ms * float(np.percentile(self._slowdowns, QUICKEST))
            # a measurement runs one or two of the canaries, so it has no shape of its own
            window = Window(ms=ms, shape=self._shape, beside_work=self._beside_work, at=time.time())
            self._yardstick = kept(self._yardstick.seen(window))
            self._slowdowns.clear()
            self._beside_work = False


def _busy(others: LoadMeter) -> bool:
    return (others.foreign_cores() or 0.0) > max(BUSY_CORES, BUSY_SHARE * len(every_core()))


def _disagree(visits: list[RawSamples]) -> bool:
    medians = [visit.median_ns for visit in visits]
    return max(medians) / min(medians) - 1 > MAX_VISIT_SPREAD


def stopwatch(conditions: Conditions) -> tuple[Stopwatch, str]:
    """What counts the time under `conditions`, and its name: "cpu", "wall" or "cuda"."""
    clock = clock_of(conditions)
    if clock == "cuda":
        from evit_nas.latency.torch_backend import cuda_stopwatch

        return cuda_stopwatch(conditions), clock
    return cpu_time if clock == "cpu" else wall_time, clock


def answer(bench: Callable[[], MeasuringBench], request: dict[str, Any]) -> dict[str, Any]:
    """The reply to one request; whatever goes wrong, with the canaries too, becomes an error with its kind."""
    try:
        protocol = Protocol.model_validate(request["protocol"])
        latency, samples = bench().measure(decoded(request["network"]), protocol)
        return {"latency": latency.model_dump(mode="json"), "samples": samples}
    except Exception as error:
        text = in_a_line(error, kind=not isinstance(error, EvitNasError), most=500)
        kind = error.kind if isinstance(error, MeasurementError) else "rejected"
        if out_of_memory(f"{type(error).__name__}: {text}"):
            text, kind = f"out of memory ({text})", "out of memory"
        return {"error": text, "kind": kind}


def main() -> None:
    """Serves standard input until it ends."""
    die_with_parent()
    for number in (signal.SIGTERM, signal.SIGHUP):  # of a job that is ended as a whole; the parent ends its child
        signal.signal(number, signal.SIG_IGN)
    conditions = Conditions.model_validate_json(sys.argv[1])
    if conditions.threads == 1:
        pin_to_one_core()
    # The runtime may print; only answers may reach the real standard output.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # when first asked, so that an error is an answer; the next request tries again, since `cache` keeps no errors
    bench = cache(lambda: MeasuringBench(conditions))
    for line in sys.stdin:
        out.write(json.dumps(answer(bench, json.loads(line))) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
