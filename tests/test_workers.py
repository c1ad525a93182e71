"""Worker processes: one thread each, off the core that measures, and gone when their parent is, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evit_nas.workers import end, worker_pool


def describe() -> tuple[int, set[int], bool]:
    """Torch's threads, the cores, and whether what a terminal sends is ignored."""
    import torch

    ignored = all(signal.getsignal(number) is signal.SIG_IGN for number in (signal.SIGINT, signal.SIGHUP))
    return torch.get_num_threads(), os.sched_getaffinity(0), ignored


def gone(pid: int, seconds: float = 60) -> bool:
    until = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    return not Path(f"/proc/{pid}").exists()


@pytest.mark.slow
def test_a_worker_has_one_thread_keeps_off_the_measuring_core_and_leaves_a_terminals_signals_to_its_parent():
    cores = os.sched_getaffinity(0)
    for avoid, allowed in ((frozenset({min(cores)}), cores - {min(cores)} or cores), (frozenset(cores), cores)):
        pool = worker_pool(1, avoid=avoid)
        assert pool.submit(describe).result() == (1, allowed, True)
        end(pool)


def sleep_beside(path: Path) -> None:
    path.write_text(str(os.getpid()))
    time.sleep(600)


@pytest.mark.slow
def test_workers_end_at_once_in_the_middle_of_what_they_do(tmp_path):
    pool = worker_pool(1)
    futures = [pool.submit(sleep_beside, tmp_path / name) for name in ("busy", "waiting", "another")]
    while not (tmp_path / "busy").exists():
        time.sleep(0.05)
    end(pool)
    assert not Path(f"/proc/{(tmp_path / 'busy').read_text()}").exists()
    assert all(future.done() for future in futures)
    assert [path.name for path in tmp_path.iterdir()] == ["busy"]


def test_a_pool_that_was_never_used_can_be_ended():
    pool = worker_pool(2)
    end(pool)
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(int)


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.slow
def test_workers_are_gone_when_their_parent_was_killed(tmp_path, by):
    (tmp_path / "parent.py").write_text(
        "import os, time\n"
        "from evit_nas.workers import worker_pool\n"
        "if __name__ == '__main__':\n"
        "    pool = worker_pool(1)\n"
        "    print(pool.submit(os.getpid).result(), flush=True)\n"
        "    pool.submit(time.sleep, 600).result()\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, text=True, env=environment
    )
    worker = int(parent.stdout.readline())
    parent.send_signal(by)
    parent.wait()
    assert gone(worker)


@pytest.mark.parametrize("piped", [False, True])
@pytest.mark.slow
def test_a_worker_does_not_run_the_program_again_that_began_it(tmp_path, piped):
    """A script without `if __name__ == "__main__"`, and one that was piped into the interpreter."""
    program = (
        "print('program', flush=True)\n"
        "import os\n"
        "from evit_nas.workers import worker_pool\n"
        "with worker_pool(1) as pool:\n"
        "    assert pool.submit(os.getppid).result() == os.getpid()\n"
    )
    (tmp_path / "program.py").write_text(program)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-" if piped else str(tmp_path / "program.py")]
    ended = subprocess.run(command, input=program, capture_output=True, text=True, env=environment, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "program\n", "")


def test_whatever_starts_processes_by_itself_starts_no_more_than_there_are_cores_for(monkeypatch):
    """A container shows the cores of the whole machine, of which its quota may be a small part."""
    from evit_nas import words
    from evit_nas.latency import machine
    from evit_nas.searching.parallel import cluster
    from evit_nas.training import hardware

    for count, workers, loaders, trials in ((1, 0, 1, 1), (4, 3, 2, 3), (64, 63, 8, 63)):
        for module in (words, cluster, machine, hardware):
            monkeypatch.setattr(module, "usable_cores", lambda count=count: count)
        settings = words.settings_from(budget="5ms")
        found = settings.workers, hardware.loaders(None), cluster._options(settings)["num_cpus"]
        assert found == (workers, loaders, trials)
    assert hardware.loaders(0) == 0


@pytest.mark.parametrize(
    ("cores", "processes", "each"), [(64, 4, 8), (16, 2, 4), (16, 4, 2), (2, 2, 0), (1, 1, 1), (2, 1, 1)]
)
def test_training_processes_on_one_machine_share_what_loads_images(monkeypatch, cores, processes, each):
    """Half the cores for all of them together; where that is none for each, each loads its own images."""
    from evit_nas.training import hardware

    monkeypatch.setattr(hardware, "usable_cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))  # as torchrun and accelerate say it
    assert hardware.loaders(None) == each
    assert hardware.loaders(3) == 3
