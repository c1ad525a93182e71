"""evit-nas: neural architecture search for EfficientViT (MSRA) under a measured latency budget."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from wrapt import register_post_import_hook

if TYPE_CHECKING:
    from evit_nas.api import Result as Result
    from evit_nas.api import resume as resume
    from evit_nas.api import search as search
    from evit_nas.arch import ArchConfig as ArchConfig
    from evit_nas.network.model import build as build
    from evit_nas.products import Model as Model
    from evit_nas.products import evaluate as evaluate
    from evit_nas.products import export as export
    from evit_nas.products import make as make
    from evit_nas.products import measure as measure
    from evit_nas.products import predict as predict
    from evit_nas.products import ship as ship
    from evit_nas.products import train as train
    from evit_nas.space import SearchSpace as SearchSpace

__version__ = "0.4.0"

# From 1.32 on ONNX Runtime writes an identifier into the user's home and reports its sessions to its makers, from
# threads that run beside what is measured; it has to be told otherwise before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_PLACES = {  # of what is offered here; each is imported when it is first asked for, since torch takes seconds
    "ArchConfig": "evit_nas.arch",
    "Model": "evit_nas.products",
    "Result": "evit_nas.api",
    "SearchSpace": "evit_nas.space",
    "build": "evit_nas.network.model",
    "evaluate": "evit_nas.products",
    "export": "evit_nas.products",
    "make": "evit_nas.products",
    "measure": "evit_nas.products",
    "predict": "evit_nas.products",
    "resume": "evit_nas.api",
    "search": "evit_nas.api",
    "ship": "evit_nas.products",
    "train": "evit_nas.products",
}
__all__ = [*_PLACES]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'evit_nas' has no attribute '{name}'")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_PLACES]


# timm.create_model("evit_nas", ...) works once both are imported, in either order; neither imports the other
register_post_import_hook("evit_nas.timm_entry:register", "timm")
