"""evit-nas: neural architecture search for EfficientViT (MSRA) under a measured latency budget."""

from __future__ import annotations

import os
from types import ModuleType
from typing import TYPE_CHECKING, Any

from wrapt import register_post_import_hook

__version__ = "0.3.0"

# From 1.32 on ONNX Runtime writes an identifier into the user's home and reports its sessions to its makers, from
# threads that run beside what is measured; it has to be told otherwise before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from evit_nas.api import search as search
else:
    from evit_nas import search  # the sub-package: it imports nothing

    class _Search(ModuleType):
        """`evit_nas.search` is where the search lives, and can be called to do one; see `evit_nas.api.search`."""

        def __call__(self, **words: Any) -> Any:
            from evit_nas.api import search

            return search(**words)

    search.__class__ = _Search

# timm.create_model("evit_nas", ...) works once both are imported, in either order; neither imports the other
register_post_import_hook("evit_nas.timm_entry:register", "timm")
