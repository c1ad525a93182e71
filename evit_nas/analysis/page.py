"""analysis.html: the four instruments on one page that opens anywhere, offline, in the form of the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import jinja2
import plotly.offline

from evit_nas.analysis.figures import BAND, figures
from evit_nas.analysis.proportion import Proportion
from evit_nas.analysis.results import Analysis
from evit_nas.analysis.suggest import CUT, Suggestion
from evit_nas.errors import UsageError
from evit_nas.runs import write_atomically


def write_page(
    path: Path,
    analyses: Sequence[Analysis] = (),
    *,
    proportion: Proportion | None = None,
    suggestion: Suggestion | None = None,
    cut: float = CUT,
) -> None:
    """Writes the page to `path`; what is not given is left out.

    Args:
        analyses: of networks side by side.
        cut: share of the channels in the chart of importance.

    Raises:
        UsageError: there is nothing to show, the file cannot be written, or `cut` is not between 0 and 1.
    """
    if not analyses and proportion is None:
        raise UsageError("a page needs an analysis or a study of attention's share.")
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader("evit_nas.analysis"), jinja2.PackageLoader("evit_nas.report")]  # its style and script
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn = figures(analyses, proportion, cut)
    text = environment.get_template("analysis.html").render(
        analyses=analyses,
        proportion=proportion,
        suggestion=suggestion,
        cut=cut,
        band=BAND,
        charts={place: json.loads(figure.to_json()) for place, figure in drawn.items()},
        plotlyjs=plotly.offline.get_plotlyjs(),
    )
    try:
        write_atomically(path, text)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}.") from None
