"""Where the cache folder lies when there is none: no home directory, or one that cannot be written."""

import logging
import os
import pwd
import stat
import tempfile
from pathlib import Path

import pytest

from evit_nas.caches import cache_folder


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """The folder for temporary files in these tests."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def homeless(monkeypatch):
    """A user id without an entry, and no HOME."""

    def unknown(user):
        raise KeyError(f"getpwuid(): uid not found: {user}")

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_users_folder_is_taken_where_it_can_be_written(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache" / "evit-nas"
    assert cache_folder().is_dir()
    assert not caplog.records


def test_without_a_home_it_lies_below_the_temporary_files_and_belongs_to_the_user_alone(homeless, temporary):
    folder = cache_folder()
    assert folder == temporary / f"evit-nas-{os.getuid()}" / "evit-nas"
    assert folder.is_dir()
    assert mode(folder.parent) == 0o700
    assert cache_folder() == folder


@pytest.mark.parametrize("unwritable", ["a file in its place", "read-only"])
def test_an_unwritable_one_is_said_once_with_the_reason_and_the_way_out(tmp_path, monkeypatch, caplog, unwritable):
    home = tmp_path / unwritable
    if unwritable == "read-only":
        home.mkdir()
        monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    else:
        home.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    with caplog.at_level(logging.WARNING, "evit_nas"):
        assert cache_folder() == cache_folder()
    assert str(home) not in str(cache_folder())
    (said,) = [record.getMessage() for record in caplog.records]
    for part in (str(home), str(cache_folder()), "Set XDG_CACHE_HOME"):
        assert part in said


@pytest.mark.parametrize("what", ["open to others", "a link", "a file"])
def test_what_somebody_else_may_have_made_is_not_used(monkeypatch, tmp_path, temporary, what):
    taken = temporary / f"evit-nas-{os.getuid()}"
    if what == "open to others":
        taken.mkdir()
        taken.chmod(0o777)
    elif what == "a link":
        (tmp_path / "theirs").mkdir(mode=0o700)
        taken.symlink_to(tmp_path / "theirs")
    else:
        taken.write_text("")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    folder = cache_folder()
    assert folder.is_dir()
    assert not folder.is_relative_to(taken)
    assert mode(folder.parent) == 0o700
    assert not (tmp_path / "theirs" / "evit-nas").exists()


def test_measuring_processes_have_the_same_one(homeless):
    from evit_nas.latency.local import child_environment

    assert Path(child_environment(1)["XDG_CACHE_HOME"]) / "evit-nas" == cache_folder()
    assert child_environment(3)["OMP_NUM_THREADS"] == "3"
