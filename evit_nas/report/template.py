"""Pages from templates: one file each, with everything it needs inside."""

from __future__ import annotations

from collections.abc import Sequence

import jinja2


def render(template: str, packages: Sequence[str], **values: object) -> str:
    """The page that a template of one of the `packages` makes of values, all of which are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package) for package in packages]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(values)
