"""Where Ray on this machine keeps its files: the paths of sockets must be short, wherever temporary files go."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import pytest

from evit_nas.errors import UsageError
from evit_nas.searching.parallel.cluster import SOCKET, _scratch_folder


@pytest.fixture
def short():
    with tempfile.TemporaryDirectory(prefix="e", dir="/tmp") as folder:
        yield folder


def listen(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)


def test_the_longest_socket_can_be_made_there(tmp_path, monkeypatch, short):
    """As in the TMPDIR of a batch job: /scratch/users/me/slurm_jobdir/1355700/tmp."""
    for folder in (short, str(tmp_path / ("a" * 60))):
        os.makedirs(folder, exist_ok=True)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        with _scratch_folder() as scratch:
            os.makedirs(os.path.dirname(f"{scratch}/{SOCKET}"))
            listen(f"{scratch}/{SOCKET}")
        assert not Path(scratch).exists()


def test_a_folder_with_a_short_path_is_the_one_that_is_used(monkeypatch, short):
    monkeypatch.setattr(tempfile, "tempdir", short)
    with _scratch_folder() as scratch:
        assert Path(scratch).parent == Path(short)


def test_without_any_the_way_out_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("a" * 60)))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UsageError, match="Set TMPDIR to a folder with a short path"), _scratch_folder():
        pass
