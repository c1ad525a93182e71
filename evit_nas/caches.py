"""Where what was learnt and decoded is kept between commands: one folder for every module, wherever that can be."""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """The user's cache folder of this package.

    Where there is none that can be written (no home directory, a read-only one), it lies below the folder for temporary
    files and nobody else may read or write it; that is said once.
    """
    try:
        named = platformdirs.user_cache_dir("evit-nas")
    except RuntimeError:  # neither HOME nor an entry in the list of users
        named = ""
    return _writable(named)


@cache  # so that it is said once
def _writable(named: str) -> Path:
    folder = Path(named)
    try:
        if not folder.is_absolute():  # "" and, of earlier versions of platformdirs, "~/.cache"
            reason = "there is no home directory"
        else:
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK | os.X_OK):
                return folder
            reason = f"{folder} cannot be written"
    except OSError as error:
        reason = f"{folder}: {error.strerror}"
    instead = _temporary() / "evit-nas"
    instead.mkdir(exist_ok=True)
    logging.getLogger(__name__).warning(
        f"no cache folder ({reason}): what is learnt and decoded goes to {instead}, which may not be there tomorrow. "
        "Set XDG_CACHE_HOME to a folder that can be written."
    )
    return instead


def _temporary() -> Path:
    """This user's own folder among the temporary files: the same one again, unless somebody else made it."""
    folder = Path(tempfile.gettempdir()) / f"evit-nas-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return folder if own else Path(tempfile.mkdtemp(prefix="evit-nas-"))
