"""analysis.html: the four instruments on one page that opens anywhere, offline, in the form of the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evit_nas.analysis.figures import BAND, figures
from evit_nas.analysis.proportion import Proportion
from evit_nas.analysis.results import Analysis
from evit_nas.analysis.suggest import CUT, Suggestion
from evit_nas.errors import UsageError
from evit_nas.files import write_atomically, writing
from evit_nas.report.template import render


def write_page(
    path: Path,
    analyses: Sequence[Analysis] = (),
    *,
    proportion: Proportion | None = None,
    suggestion: Suggestion | None = None,
) -> None:
    """Writes the page to `path`; what is not given is left out.

    Args:
        analyses: of networks side by side.

    Raises:
        UsageError: there is nothing to show, or the file cannot be written.
    """
    if not analyses and proportion is None:
        raise UsageError("a page needs an analysis or a study of attention's share.")
    text = render(
        "analysis.html",
        ["evit_nas.analysis", "evit_nas.report"],  # the second for its style and script
        analyses=analyses,
        proportion=proportion,
        suggestion=suggestion,
        cut=CUT,
        band=BAND,
        charts=figures(analyses, proportion, CUT),
    )
    with writing(path):
        write_atomically(path, text)
