"""Which architectures a search has to measure: those whose predicted latency may bring them to the front.

A forecast starts from everything measured on the device before the run's own trials (a copy lies in the run folder),
and learns from each measurement of the run, in order: a resumed search decides as an uninterrupted one does.
Predictions decide what is measured; they never stand in a front.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from optuna.trial import FrozenTrial

from evit_nas.arch import ArchConfig
from evit_nas.config import SearchSettings
from evit_nas.latency import Device, Latency, Unit
from evit_nas.latency.predictor import Predictor, fit
from evit_nas.latency.samples import Sample, Table, merged, read_samples
from evit_nas.latency.yardstick import Units
from evit_nas.searching.attributes import TrialAttributes
from evit_nas.space import SearchSpace

# predictions become good enough between 24 and 32 networks: docs/results/predictor.md
REFIT_EVERY = 8  # new measurements; twice as many beyond GIVE_UP_AFTER, where each says less and a fit takes longer
WIDE = 3  # times their mean error: nineteen of twenty predictions are nearer (if errors fall off exponentially)
GIVE_UP_AFTER = 64  # distinct networks: if these do not make a good fit, the user should know


class Forecast:
    """Predicts the median latency on one device, where that is good enough."""

    def __init__(self, device: Device, space: SearchSpace, folder: Path, note: Callable[[str], None]) -> None:
        self.device, self._note = device.conditions.device, note
        table = Table(device.context(), space)
        copy = folder / f"latencies-{self.device.replace(':', '-').replace('/', '-')}.json"
        if not copy.exists():  # a resumed search must not see what others measured since
            table.export_to(copy)
        self._samples: list[Sample] = read_samples(json.loads(copy.read_text(encoding="utf-8")))
        self._copied, self._fitted_to = len(self._samples), -1
        self._predictor: Predictor | None = None
        self._canary_ms: float | None = None  # the yardstick of what it was fitted to
        self._told = ""

    @property
    def band(self) -> float:
        """Share by which a prediction may well be off."""
        return WIDE * self._predictor.check.mape if self._predictor else 0.0

    def predict_ms(self, archs: Sequence[ArchConfig], unit: Unit | None = None) -> np.ndarray | None:
        """(n,) predicted medians in milliseconds by that unit; None while predictions are not good enough."""
        every = REFIT_EVERY if len(self._samples) < GIVE_UP_AFTER else 2 * REFIT_EVERY
        # by their number alone: a resumed search fits to the same ones
        due = max(self._copied, len(self._samples) // every * every)
        if due != self._fitted_to:
            self._fitted_to = due
            self._refit(merged(self._samples[:due]))
        if self._predictor is None or not self._predictor.check.trusted:
            return None
        predicted = self._predictor.predict_ms(archs)
        return predicted * unit.ms / self._canary_ms if unit and self._canary_ms else predicted

    def learn(self, arch: ArchConfig, latency: Latency) -> None:
        """Takes one more measurement in."""
        self._samples.append(Sample.of(arch, latency))

    def _refit(self, samples: list[Sample]) -> None:
        self._predictor = fit(samples)
        self._canary_ms = samples[0].canary_ms if samples else None  # one for all, see `merged`
        if self._predictor is None:
            return
        check = self._predictor.check
        if check.trusted:
            end = "only what may reach the front is measured from here on"
            self._tell("predicted", f"predicted latencies on {self.device} are {check}: {end}")
        elif len(samples) >= GIVE_UP_AFTER:
            end = "every architecture is measured"
            self._tell("measured", f"latencies on {self.device} cannot be predicted well ({check}): {end}")

    def _tell(self, state: str, message: str) -> None:
        """Says it once, until it changes."""
        if self._told != state:
            self._told = state
            self._note(message)


class Forecasts:
    """The forecasts of a search, one for each device: they predict together or not at all.

    For a budget on the 90th percentile there are none.
    """

    def __init__(
        self, devices: Sequence[Device], settings: SearchSettings, folder: Path, note: Callable[[str], None]
    ) -> None:
        predictable = devices if settings.budget_stat == "median" else []
        self._forecasts = [Forecast(device, settings.space, folder, note) for device in predictable]

    @property
    def bands(self) -> np.ndarray:
        """(devices,) shares by which predictions may well be off."""
        return np.array([forecast.band for forecast in self._forecasts])

    def predict_ms(self, archs: Sequence[ArchConfig], units: Units) -> np.ndarray | None:
        """(n, devices) predicted medians in milliseconds by `units`; None unless good enough on every device."""
        columns = [forecast.predict_ms(archs, units.get(forecast.device)) for forecast in self._forecasts]
        known = [column for column in columns if column is not None]
        return np.column_stack(known) if known and len(known) == len(columns) else None

    def learn(self, trial: FrozenTrial) -> None:
        """Takes the measurements of a finished trial in; one that failed, repeats another or was predicted has none."""
        on_record = TrialAttributes(trial)
        for forecast, latency in zip(self._forecasts, on_record.latencies, strict=False):
            forecast.learn(on_record.arch, latency)
