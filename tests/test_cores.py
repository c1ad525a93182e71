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
        monkeypatch.setattr(machine, "read", (files or {}).get)

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


def kinds(file: str, *speeds: int) -> dict[str, str]:
    """Cores of different kinds, in their order."""
    return {f"/sys/devices/system/cpu/cpu{core}/{file}": str(speed) for core, speed in enumerate(speeds)}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 7),
        (kinds("cpu_capacity", *[446] * 4, *[1024] * 4), 7),  # ARM, the large ones last
        (kinds("cpu_capacity", *[1024] * 2, *[446] * 6), 1),
        (kinds("acpi_cppc/highest_perf", 68, 68, 70, 66, 42, 42, 42, 42), 3),  # Intel, a favoured core among the fast
        (kinds("acpi_cppc/highest_perf", *[196] * 3, 151, *[196] * 2, *[151] * 2), 5),  # AMD
        (kinds("cpufreq/cpuinfo_max_freq", *[5_000_000] * 4, *[3_800_000] * 4), 3),
        (kinds("cpufreq/cpuinfo_max_freq", *[5_000_000] * 7), 7),  # the last one does not tell
        (kinds("cpu_capacity", *[1024] * 6, 446, 446) | kinds("cpufreq/cpuinfo_max_freq", *[2_000_000] * 8), 5),
    ],
)
def test_one_thread_is_measured_on_the_last_core_of_the_fastest_kind(on, files, expected):
    on(8, files)
    assert machine.measuring_core() == {expected}


def test_cores_of_a_slower_kind_are_another_processor(on, monkeypatch):
    files = {"/proc/cpuinfo": "model name : Some Core"} | kinds("acpi_cppc/highest_perf", *[68] * 4, *[42] * 4)
    on(8, files)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert machine.processor() == "Some Core"
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5, 6, 7})
    assert machine.processor() == "Some Core, slower cores"
    assert machine.measuring_core() == {7}


def test_as_many_threads_as_cores_are_taken(on):
    on(4)
    for conditions in (parse_conditions("cpu:4"), parse_conditions("torch", threads=4)):
        assert conditions.threads == machine.usable_cores()
        machine.check_threads(conditions)


@pytest.mark.parametrize(("device", "threads"), [("cpu:64", None), ("cpu", 64), ("cpu-int8:3", None), ("torch", 3)])
def test_more_are_refused_by_name(on, device, threads):
    on(2, {GROUP: "0::/", f"{V2}/cpu.max": "200000 100000"})
    conditions = parse_conditions(device, threads=threads)
    with pytest.raises(
        UsageError, match=rf"'{conditions.device}' with {conditions.threads} threads needs .*for 2 at most"
    ):
        open_device(conditions)


@pytest.mark.parametrize(
    ("cores", "of", "files", "words"),
    [
        ({0, 1}, 2, {}, "and this machine has cores 0 and 1: ask for 2"),
        ({0}, 1, {}, "and this machine has core 0: ask for 1"),
        (set(range(16)), 16, {}, "and this machine has cores 0 to 15: ask for 16"),
        ({1, 2, 5}, 16, {}, "and this process may use, of 16, cores 1, 2 and 5: ask for 3"),
        (
            set(range(16)),
            16,
            {GROUP: "0::/", f"{V2}/cpu.max": "200000 100000"},
            "and this machine has cores 0 to 15, with a CPU quota of 2: ask for 2",
        ),
    ],
)
def test_the_cores_that_there_are_are_named(on, monkeypatch, cores, of, files, words):
    on(0, files)
    monkeypatch.setattr(os, "cpu_count", lambda: of)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: cores)
    with pytest.raises(UsageError, match=words):
        machine.check_threads(parse_conditions("cpu:99"))


def test_a_profile_refuses_them_too(on):
    on(1)
    with pytest.raises(UsageError, match="may use, of 16, core 0: ask for 1"):
        profile(tiny_arch(), parse_conditions("cpu:2"))


def test_a_device_elsewhere_has_other_cores(on):
    on(1)
    with open_device(parse_conditions("remote:board", threads=4)) as device:
        assert device.conditions.threads == 4


@pytest.mark.parametrize(
    "verb",
    [
        ["measure", "m0", "--device"],
        ["profile", "m0", "--device"],
        ["search", "--budget", "5ms", "--device"],
        ["doctor", "--device"],
        ["device", "check"],
        ["latency", "fit", "--device"],
    ],
)
def test_the_command_line_says_so_before_anything_is_measured(call, verb):
    refused = call(*verb, f"cpu:{10 * (os.cpu_count() or 1)}")
    assert (refused.code, refused.out) == (2, "")
    assert f"ask for {machine.usable_cores()} at most." in refused.err
