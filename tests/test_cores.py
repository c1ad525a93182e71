"""More threads than cores are refused: affinity and the quotas of both versions of control groups count."""

import os

import pytest

from evit_nas.errors import UsageError
from evit_nas.latency import machine, open_device, parse_conditions
from evit_nas.latency.profile import profile
from tests.networks import tiny_arch

GROUP = "/proc/self/cgroup"
V2 = "/sys/fs/cgroup"
V1 = "/sys/fs/cgroup/cpu"


@pytest.fixture
def on(monkeypatch):
    """Makes this a machine of so many cores with these files."""

    def on(cores: int, files: dict[str, str] | None = None) -> None:
        monkeypatch.setattr(os, "cpu_count", lambda: 16)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
        monkeypatch.setattr(machine, "_read", (files or {}).get)

    return on


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({GROUP: "0::/"}, 8),
        ({GROUP: "0::/", f"{V2}/cpu.max": "max 100000"}, 8),
        ({GROUP: "0::/", f"{V2}/cpu.max": "250000 100000"}, 3),
        ({GROUP: "0::/", f"{V2}/cpu.max": "50000 100000"}, 1),
        ({GROUP: "0::/", f"{V2}/cpu.max": "6400000 100000"}, 8),
        ({GROUP: "0::/user/job", f"{V2}/user/job/cpu.max": "max 100000", f"{V2}/user/cpu.max": "400000 100000"}, 4),
        ({GROUP: "0::/user/job", f"{V2}/user/job/cpu.max": "200000 100000", f"{V2}/cpu.max": "400000 100000"}, 2),
        (
            {
                GROUP: "4:cpu,cpuacct:/docker/1\n2:cpuset:/docker/1\n0::/",
                f"{V1}/cpu.cfs_quota_us": "200000",  # as a container sees it: its own group is the root
                f"{V1}/cpu.cfs_period_us": "100000",
            },
            2,
        ),
        ({GROUP: "1:cpu:/", f"{V1}/cpu.cfs_quota_us": "-1", f"{V1}/cpu.cfs_period_us": "100000"}, 8),
        ({GROUP: "2:cpuset:/", f"{V2}/cpu.max": "100000 100000"}, 8),
    ],
)
def test_the_smallest_of_affinity_and_quotas_counts(on, files, expected):
    on(8, files)
    assert machine.usable_cores() == expected


def test_as_many_threads_as_cores_are_taken(on):
    on(4)
    for conditions in (parse_conditions("cpu:4"), parse_conditions("torch", threads=4)):
        assert conditions.threads == machine.usable_cores()
        machine.check_threads(conditions)


@pytest.mark.parametrize(("device", "threads"), [("cpu:64", None), ("cpu", 64), ("cpu-int8:3", None), ("torch", 3)])
def test_more_are_refused_with_the_number_that_there_is(on, device, threads):
    on(2, {GROUP: "0::/", f"{V2}/cpu.max": "200000 100000"})
    conditions = parse_conditions(device, threads=threads)
    with pytest.raises(UsageError, match=rf"'{conditions.device}' with .* has 2 of the machine's 16 .*for 2 at most"):
        open_device(conditions)


def test_a_profile_refuses_them_too(on):
    on(1)
    with pytest.raises(UsageError, match="has 1 of"):
        profile(tiny_arch(), parse_conditions("cpu:2"))


def test_a_device_elsewhere_has_other_cores(on):
    on(1)
    with open_device(parse_conditions("remote:board", threads=4)) as device:
        assert device.conditions.threads == 4


@pytest.mark.parametrize("verb", [["measure", "m0"], ["profile", "m0"], ["search", "--budget", "5ms"], ["doctor"]])
def test_the_command_line_says_so_before_anything_is_measured(call, verb):
    refused = call(*verb, "--device", f"cpu:{10 * (os.cpu_count() or 1)}")
    assert (refused.code, refused.out) == (2, "")
    assert f"Ask for {machine.usable_cores()} at most." in refused.err
