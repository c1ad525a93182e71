"""What tests of whole searches share: a watcher that keeps what it is told, and what a run has on record."""

from __future__ import annotations

from evit_nas.runs import Run
from evit_nas.searching.record import Known
from evit_nas.searching.storage import for_samplers, open_study


class Died(BaseException):
    """Stands for a process that ends here and now: nothing may catch it."""


class Silent:
    """A watcher that says nothing, and keeps everything."""

    def __init__(self):
        self.notes, self.statuses, self.steps = [], [], []

    def note(self, message):
        self.notes.append(message)

    def step(self, what, done, total):
        self.steps.append((what, done, total))

    def update(self, status):
        self.statuses.append(status)


def keys(run: Run) -> list[str]:
    """The distinct architectures of a run in the order in which they were evaluated."""
    with open_study(run) as study:
        return list(Known(study).by_key)


def trials(run: Run) -> list:
    """Every trial of a run, repeats and failures included."""
    with open_study(run) as study:
        return [for_samplers(trial) for trial in study.get_trials()]
