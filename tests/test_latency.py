"""Every device keeps the same contract; the canary's quiet time only ever falls; a dead child costs one trial."""

import json
import os
import signal

import numpy as np
import pytest

from evit_nas.errors import MeasurementError, UsageError
from evit_nas.latency import DEVICES, STRICT, Latency, Protocol, open_device, ratio_table
from evit_nas.latency import canary as canary_module
from evit_nas.latency.cpu import CpuDevice
from evit_nas.latency.machine import foreign_load, probe
from evit_nas.latency.worker import answer, inference
from evit_nas.network.onnx_graph import build_onnx
from tests.fakes import latency_of
from tests.networks import tiny_arch

QUICK = Protocol(min_pairs=4, max_pairs=6, warmup_ms=5)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.parametrize("name", sorted(DEVICES))
class TestEveryDevice:
    def test_measures_with_spread_and_conditions(self, name):
        with open_device(name) as device:
            latency, samples = device.measure(tiny_arch(), QUICK)
            again, _ = device.measure(tiny_arch(), QUICK)
        assert latency.device == name
        assert 0 < latency.median_ms <= latency.p90_ms * 1.001
        assert latency.median_ms == pytest.approx(latency.ratio * latency.canary_ms)
        assert latency.canary_ms == again.canary_ms  # one yardstick a session
        assert latency.pairs == len(samples["candidate_ns"]) == len(samples["canary_ns"]) >= QUICK.min_pairs
        assert latency.runtime
        assert latency.machine
        assert Latency.model_validate(json.loads(latency.model_dump_json())) == latency

    def test_tells_a_larger_network_from_a_smaller_one(self, name):
        with open_device(name) as device:
            small, large = (device.measure(arch, QUICK)[0] for arch in (tiny_arch(), tiny_arch(ffn_count=4)))
        assert ratio_table([small, large])[1] > 1.2

    def test_says_what_its_figures_depend_on(self, name):
        with open_device(name) as device:
            assert {"device", "processor", "runtime"} <= set(device.context())
            assert device.context() == device.context()

    def test_a_file_that_is_no_graph_is_one_error_and_the_device_goes_on(self, name, tmp_path):
        (tmp_path / "broken.onnx").write_bytes(b"not a graph")
        with open_device(name) as device:
            with pytest.raises(MeasurementError):
                device.measure_file(str(tmp_path / "broken.onnx"), QUICK)
            assert device.measure(tiny_arch(), QUICK)[0].median_ms > 0

    def test_measures_an_onnx_file(self, name, tmp_path):
        path = tmp_path / "net.onnx"
        path.write_bytes(build_onnx(tiny_arch(), batch=None).SerializeToString())
        with open_device(name) as device:
            assert device.measure_file(str(path), QUICK)[0].median_ms > 0


def test_unknown_device_lists_the_known_ones():
    with pytest.raises(UsageError, match=r"Did you mean 'cpu'\?"):
        open_device("cpuu")


def test_a_killed_child_costs_one_measurement():
    with CpuDevice() as device:
        device.measure(tiny_arch(), QUICK)
        os.kill(device._child.pid, signal.SIGKILL)
        device._child.wait()
        assert device.measure(tiny_arch(), QUICK)[0].median_ms > 0  # noticed before asking: not even one


def test_a_child_that_hangs_is_ended_and_replaced():
    with CpuDevice() as device:
        device.measure(tiny_arch(), QUICK)
        os.kill(device._child.pid, signal.SIGSTOP)
        device._timeout_s = 0.5
        with pytest.raises(MeasurementError, match="longer than"):
            device.measure(tiny_arch(), QUICK)
        device._timeout_s = 60
        assert device.measure(tiny_arch(), QUICK)[0].median_ms > 0


def test_closing_leaves_no_process_behind():
    with CpuDevice() as device:
        device.measure(tiny_arch(), QUICK)
        child = device._child
    assert child.poll() is not None


def test_a_child_that_dies_reports_its_last_words(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr("sys.executable", "/bin/false")
    with CpuDevice() as device, pytest.raises(MeasurementError, match="died with exit status 1"):
        device.measure(tiny_arch(), QUICK)


def test_the_worker_answers_wrong_requests_with_an_error():
    assert "protocol" in answer(None, {})["error"]
    assert "exactly 3 stages" in answer(None, {"protocol": {}, "arch": {"stages": []}})["error"]


def test_inference_runs_on_random_input_of_the_declared_shape():
    (logits,) = inference(build_onnx(tiny_arch()).SerializeToString())()
    assert logits.shape == (1, 10)
    assert np.isfinite(logits).all()


def test_the_quiet_time_is_learnt_and_only_falls():
    slow, fast = np.full(100, 3e6), np.full(100, 2e6)
    assert canary_module.quiet_ms(slow, "machine") == pytest.approx(3.0)
    assert canary_module.quiet_ms(fast, "machine") == pytest.approx(2.0)
    assert canary_module.quiet_ms(slow, "machine") == pytest.approx(2.0)
    assert canary_module.quiet_ms(slow, "another machine") == pytest.approx(3.0)


def test_a_damaged_or_unwritable_cache_is_no_obstacle(tmp_path, monkeypatch):
    canary_module.quiet_ms(np.full(100, 3e6), "machine")
    for path in (tmp_path / "evit-nas").iterdir():
        path.write_text("{broken")
    assert canary_module.quiet_ms(np.full(100, 4e6), "machine") == pytest.approx(4.0)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert canary_module.quiet_ms(np.full(100, 5e6), "machine") == pytest.approx(5.0)


def test_noise_is_the_canary_being_slower_than_when_quiet():
    assert not canary_module.is_noisy(np.full(9, 2.4e6), 2.0)
    assert canary_module.is_noisy(np.full(9, 2.6e6), 2.0)


def test_a_latency_reads_with_its_spread_and_its_doubt():
    assert str(latency_of(4.3149)) == "4.31 ms ± 1.0%"
    assert str(latency_of(4.3149, noisy=True)) == "4.31 ms ± 1.0% (noisy)"
    assert latency_of(4.0, rel_error=0.05).high_ms == pytest.approx(4.2)


def test_strict_is_stricter():
    assert STRICT.min_pairs > Protocol().min_pairs
    assert STRICT.visits > Protocol().visits
    assert STRICT.target_rel_error < Protocol().target_rel_error


def test_the_machine_can_be_described_even_where_files_are_missing(monkeypatch):
    assert probe().cores >= 1
    assert foreign_load(0.05) >= 0
    monkeypatch.setattr("evit_nas.latency.machine._read", lambda path: None)
    assert probe().governor is None
    assert probe().processor
    assert foreign_load(0.01) is None
