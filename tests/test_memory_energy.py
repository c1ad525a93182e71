"""Memory is that of a fresh deployment, whoever asks; energy is what a counter says above idle, or nothing."""

import json
import subprocess
import sys
import types

import numpy as np
import pytest

from evit_nas.arch import ArchConfig
from evit_nas.config import Conditions
from evit_nas.errors import MeasurementError
from evit_nas.latency import TimmModel, energy, memory, parse_conditions
from evit_nas.latency.energy import energy_mj, meter, nvml, rapl
from evit_nas.latency.measurable import encoded
from evit_nas.latency.memory import peak_memory_mb
from evit_nas.latency.runtimes import RUNTIMES
from evit_nas.network.onnx_graph import build_onnx
from tests.networks import tiny_arch

CPU = Conditions()
linux = pytest.mark.skipif(memory.resident_peak_mb() is None, reason="this system does not show resident memory")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@linux
class TestMemory:
    def test_a_larger_network_needs_more_about_its_weights_and_the_graph(self):
        small, large = (peak_memory_mb(arch, CPU) for arch in (tiny_arch(), ArchConfig.preset("m3")))
        weights_mb = 6.9 * 4
        assert 30 < small < 150  # resident, not reserved
        assert small + weights_mb < large < small + 4 * weights_mb

    def test_more_images_need_more(self):
        one, many = (peak_memory_mb(ArchConfig.preset("m0"), Conditions(batch=batch)) for batch in (1, 16))
        assert many > one + 10

    def test_the_size_of_the_asking_process_does_not_matter(self):
        before = peak_memory_mb(tiny_arch(), CPU)
        ballast = np.ones(500_000_000 // 8)
        assert memory.resident_peak_mb() > ballast.nbytes / 1e6
        assert peak_memory_mb(tiny_arch(), CPU) == pytest.approx(before, abs=10)

    def test_the_process_holds_nothing_but_the_runtime(self, tmp_path):
        (tmp_path / "net.onnx").write_bytes(build_onnx(tiny_arch()).SerializeToString())
        command = [sys.executable, "-X", "importtime", "-P", memory.__file__, tmp_path / "net.onnx"]
        ended = subprocess.run([*command, CPU.model_dump_json()], capture_output=True, text=True, check=True)
        imported = {line.split("|")[-1].strip().split(".")[0] for line in ended.stderr.splitlines()}
        assert "onnxruntime" in imported
        assert not imported & {"evit_nas", "pydantic", "onnx", "torch"}

    @pytest.mark.parametrize("family", sorted(RUNTIMES))
    def test_every_runtime_can_be_asked(self, family):
        if RUNTIMES[family].missing(family):
            pytest.skip(RUNTIMES[family].missing(family))
        conditions = Conditions(device=family, precision=RUNTIMES[family].precisions[0])
        for subject in (tiny_arch(), TimmModel("lcnet_035", 64)):
            assert 20 < peak_memory_mb(subject, conditions) < 4000

    def test_quantising_is_left_to_the_asking_process(self):
        """Its tools would be most of the figure; the network itself needs less in 8 bits."""
        floats, bytes_ = (
            peak_memory_mb(ArchConfig.preset("m3"), parse_conditions(device)) for device in ("cpu", "cpu-int8")
        )
        assert bytes_ < floats - 0.5 * 6.9 * 3

    def test_a_runtime_that_needs_evit_nas_gets_the_network_through_it(self, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["memory", json.dumps(encoded(tiny_arch())), CPU.model_dump_json()])
        memory.main()
        assert float(capsys.readouterr().out) == pytest.approx(memory.resident_peak_mb(), rel=0.01)

    def test_a_graph_for_another_batch_is_one_error(self, tmp_path):
        (tmp_path / "net.onnx").write_bytes(build_onnx(tiny_arch(), batch=1).SerializeToString())
        with pytest.raises(MeasurementError, match="Got: 2 Expected: 1"):
            peak_memory_mb(tmp_path / "net.onnx", Conditions(batch=2))

    def test_a_process_that_takes_too_long_is_ended(self):
        with pytest.raises(MeasurementError, match="longer than") as raised:
            peak_memory_mb(tiny_arch(), CPU, timeout_s=0.01)
        assert raised.value.kind == "timeout"

    @pytest.mark.parametrize(
        ("words", "kind"),
        [
            ("import os; os.kill(os.getpid(), 9)", "out of memory"),
            ("raise MemoryError", "out of memory"),
            ("import os; os.abort()", "crashed"),
            ("raise ValueError", "rejected"),
        ],
    )
    def test_a_process_that_dies_says_how(self, words, kind):
        with pytest.raises(MeasurementError) as raised:
            memory._peak_of([sys.executable, "-c", words], threads=1, timeout_s=60)
        assert raised.value.kind == kind


def test_nothing_is_available_of_a_remote_device():
    assert peak_memory_mb(tiny_arch(), Conditions(device="remote:board")) is None
    assert meter(Conditions(device="remote:board")) is None


def test_memory_is_not_available_where_the_system_does_not_show_it(monkeypatch):
    monkeypatch.setattr(memory, "resident_peak_mb", lambda: None)
    assert peak_memory_mb(tiny_arch(), CPU) is None


class House:
    """A clock and an energy counter: so many watts when nothing runs, so many more while something does."""

    def __init__(self, idle_w=10.0, running_w=30.0, run_s=0.004):
        self.now, self.joules = 0.0, 1000.0
        self.idle_w, self.running_w, self.run_s = idle_w, running_w, run_s

    def pass_time(self, seconds, watts):
        self.now += seconds
        self.joules += seconds * watts

    def measure(self):
        return energy_mj(
            lambda: self.pass_time(self.run_s, self.running_w),
            lambda: self.joules,
            lambda: self.now,
            lambda seconds: self.pass_time(seconds, self.idle_w),
        )


class TestEnergy:
    def test_is_what_running_draws_above_idle(self):
        assert House(idle_w=10, running_w=30, run_s=0.004).measure() == pytest.approx(20 * 4)  # 20 W for 4 ms, in mJ

    def test_both_blocks_last_a_second_at_least(self):
        house = House()
        house.measure()
        assert house.now >= 2.0

    def test_a_slow_network_runs_once_at_least(self):
        assert House(run_s=5.0).measure() == pytest.approx(20 * 5000)

    def test_drawing_no_more_than_idle_is_no_figure(self):
        with pytest.raises(MeasurementError, match="end other work") as raised:
            House(idle_w=30, running_w=30).measure()
        assert raised.value.kind == "noisy"


def domain(root, folder, name, energy_uj, range_uj=999_999):
    (root / folder).mkdir()
    (root / folder / "name").write_text(f"{name}\n")
    (root / folder / "energy_uj").write_text(f"{energy_uj}\n")
    (root / folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return root / folder / "energy_uj"


class TestRapl:
    def test_packages_are_added_and_their_parts_are_not(self, tmp_path):
        counters = [
            domain(tmp_path, folder, name, 100_000)
            for folder, name in (
                ("intel-rapl:0", "package-0"),
                ("intel-rapl:1", "package-1"),
                ("intel-rapl:0:0", "core"),
                ("intel-rapl:0:1", "dram"),
                ("intel-rapl:2", "psys"),
                ("intel-rapl-mmio:0", "package-0"),
            )
        ]
        joules = rapl(tmp_path)
        for counter in counters:
            counter.write_text("600000\n")
        assert joules() == pytest.approx(2 * 0.5)

    def test_a_counter_that_starts_again_counts_on(self, tmp_path):
        counter = domain(tmp_path, "intel-rapl:0", "package-0", 900_000, range_uj=999_999)
        joules = rapl(tmp_path)
        seen = []
        for value in (950_000, 100_000, 900_000, 100_000):
            counter.write_text(str(value))
            seen.append(joules())
        assert seen == pytest.approx([0.05, 0.2, 1.0, 1.2])

    def test_without_powercap_there_is_none(self, tmp_path):
        assert rapl(tmp_path / "nowhere") is None
        assert rapl(tmp_path) is None

    def test_one_package_that_only_root_may_read_leaves_none(self, tmp_path, monkeypatch):
        domain(tmp_path, "intel-rapl:0", "package-0", 1)
        secret = domain(tmp_path, "intel-rapl:1", "package-1", 1)
        readable = energy.read
        monkeypatch.setattr(energy, "read", lambda path: None if path == secret else readable(path))
        assert rapl(tmp_path) is None


class FakeNvml(types.ModuleType):
    """NVML with one GPU; `millijoules` is None on one without a counter."""

    NVMLError = type("NVMLError", (Exception,), {})

    def __init__(self, millijoules):
        super().__init__("pynvml")
        self.millijoules = millijoules

    def nvmlInit(self): ...

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        assert handle == "GPU-1234"
        if self.millijoules is None:
            raise self.NVMLError("not supported")
        return self.millijoules


class TestNvml:
    @pytest.fixture(autouse=True)
    def _one_gpu(self, monkeypatch):
        gpu = types.SimpleNamespace(uuid="1234")
        monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: gpu)

    def test_counts_joules(self, monkeypatch):
        fake = FakeNvml(5000)
        monkeypatch.setitem(sys.modules, "pynvml", fake)
        joules = nvml(0)
        fake.millijoules += 2500
        assert joules() == 7.5

    def test_a_gpu_without_a_counter_has_none(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(None))
        assert nvml(0) is None

    def test_without_the_library_there_is_none(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pynvml", None)
        assert nvml(0) is None


def test_each_device_has_the_counter_of_its_own_silicon(monkeypatch):
    monkeypatch.setattr(energy, "rapl", lambda: "processor")
    monkeypatch.setattr(energy, "nvml", lambda index: f"gpu {index}")
    assert meter(Conditions(device="cpu:4", threads=4)) == "processor"
    assert meter(Conditions(device="cuda-onnx:1")) == "gpu 1"
