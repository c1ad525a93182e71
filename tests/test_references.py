"""timm's networks become files that compute the same; published figures stay apart; nothing is measured twice."""

import pytest
import torch

from evit_nas.arch import PRESETS
from evit_nas.config import Conditions
from evit_nas.errors import LostLink, MeasurementError, UsageError
from evit_nas.latency import Device, Latency, Protocol, TimmModel, references
from evit_nas.latency.references import PUBLISHED_TOP1, REFERENCES, known_references, measure_references
from evit_nas.network import timm_models
from evit_nas.network.timm_models import timm_network, timm_onnx
from tests.networks import relative_error

SMALL = "mobilenetv3_small_050"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def run(path, images):
    ort = pytest.importorskip("onnxruntime")
    return torch.from_numpy(ort.InferenceSession(path).run(None, {"input": images.numpy()})[0])


class TestExport:
    @pytest.mark.parametrize("name", [SMALL, "levit_128s"])  # the latter has to be told its size when it is built
    def test_the_file_computes_what_the_network_does_at_any_batch(self, name):
        path = timm_onnx(name, 64)
        model, input_size = timm_network(name, 64)
        images = torch.randn(3, *input_size, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = model(images)
        assert input_size == (3, 64, 64)
        assert relative_error(expected[:1], expected[1:2]) > 1e-2  # the signal lives
        assert relative_error(run(path, images), expected) < 1e-4
        assert relative_error(run(path, images[:1]), expected[:1]) < 1e-4

    def test_every_weight_is_in_the_file_though_many_start_at_zero(self):
        """The exporter shares equal tensors: half of LeViT's would be the same zeros."""
        path = timm_onnx("levit_128s", 64)
        model, _ = timm_network("levit_128s", 64)
        assert path.stat().st_size > 4 * sum(parameter.numel() for parameter in model.parameters())

    def test_the_second_time_nothing_is_built(self, monkeypatch):
        path = timm_onnx(SMALL, 64)
        monkeypatch.setattr(timm_models, "timm_network", None)
        monkeypatch.setattr("timm.list_models", None)
        assert timm_onnx(SMALL, 64) == path
        with pytest.raises(TypeError):
            timm_onnx(SMALL, 96)  # another network

    def test_the_global_random_state_stays_as_it_is(self):
        torch.manual_seed(123)
        before = torch.get_rng_state()
        timm_network(SMALL)
        assert torch.equal(torch.get_rng_state(), before)

    def test_its_own_size_is_the_one_it_is_trained_at(self):
        assert timm_network("mobilenetv4_conv_small.e2400_r224_in1k")[1] == (3, 224, 224)  # tested at 256 too

    def test_a_batch_that_tracing_bakes_in_is_fixed_to_one(self, monkeypatch):
        class Baked(torch.nn.Module):
            def forward(self, images):
                return images.mean((2, 3)).reshape(int(images.shape[0]), 3)

        monkeypatch.setattr(timm_models, "timm_network", lambda name, image_size: (Baked(), (3, 8, 8)))
        path = timm_onnx(SMALL, 8)
        images = torch.randn(1, 3, 8, 8)
        assert relative_error(run(path, images), Baked()(images)) < 1e-5
        with pytest.raises(Exception, match="Got: 2 Expected: 1"):
            run(path, images.repeat(2, 1, 1, 1))

    def test_an_unknown_name_lists_the_three_nearest_and_leaves_no_file(self, tmp_path):
        with pytest.raises(UsageError, match=r"called 'resnet188'.*: resnet18\w*, \w+, \w+\."):
            timm_onnx("resnet188")
        assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]

    def test_an_impossible_size_is_one_error(self):
        with pytest.raises(MeasurementError, match=r"vit_tiny_patch16_224.*8 x 8"):
            timm_onnx("vit_tiny_patch16_224", 8)

    def test_a_file_that_does_not_run_is_not_kept(self, tmp_path, monkeypatch):
        def refuse(path, input_size, batches):
            assert path.stat().st_size > 1000
            raise RuntimeError("unknown operator")

        monkeypatch.setattr(timm_models, "_check_runs", refuse)
        with pytest.raises(MeasurementError, match="unknown operator"):
            timm_onnx(SMALL, 64)
        assert list((tmp_path / "cache").rglob("*.*")) == []

    def test_a_cache_that_cannot_be_written_says_what_to_set(self, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("")
        monkeypatch.setattr("evit_nas.network.timm_models.cache_folder", lambda: tmp_path / "file")
        with pytest.raises(UsageError, match="XDG_CACHE_HOME"):
            timm_onnx(SMALL, 64)


class TestTable:
    def test_every_reference_is_a_network_of_timm(self):
        import timm

        assert {reference.name for reference in REFERENCES} <= set(timm.list_models())

    def test_names_and_labels_are_unique_and_none_is_a_preset(self):
        assert len({reference.name for reference in REFERENCES}) == len(REFERENCES)
        assert len({reference.label for reference in REFERENCES}) == len(REFERENCES)
        assert not {reference.name.removeprefix("efficientvit_") for reference in REFERENCES} & set(PRESETS)

    def test_accuracies_are_percent_and_rise(self):
        accuracies = [reference.published_top1 for reference in REFERENCES]
        assert accuracies == sorted(accuracies)
        assert min(accuracies) > 60
        assert max(accuracies) < 85

    def test_every_preset_has_a_published_accuracy_and_larger_ones_a_higher_one(self):
        assert list(PUBLISHED_TOP1) == sorted(PRESETS)
        assert list(PUBLISHED_TOP1.values()) == sorted(PUBLISHED_TOP1.values())

    def test_sizes_are_those_of_the_published_figures(self):
        sizes = {reference.name: reference.image_size for reference in REFERENCES}
        assert sizes.pop("tinynet_a") == 192
        assert set(sizes.values()) == {224}


def latency_of(ms, noise=""):
    return Latency(
        median_ms=ms,
        p90_ms=ms,
        rel_error=0.01,
        ratio=ms,
        canary_ms=1.0,
        rounds=12,
        conditions=Conditions(),
        input_shape=(1, 3, 224, 224),
        clock="cpu",
        runtime="none 1.0",
        machine="imaginary",
        noise=noise,
    )


class Shelf(Device):
    """A device that answers from a table of milliseconds and notes what it was asked."""

    def __init__(self, ms=3.0, noise="", place="here", broken=(), error=MeasurementError):
        self.conditions, self.error = Conditions(), error
        self.ms, self.noise, self.place, self.broken, self.asked = ms, noise, place, broken, []

    def measure(self, subject, protocol):
        assert isinstance(subject, TimmModel)
        self.asked.append((subject.name, subject.image_size))
        if subject.name in self.broken:
            raise self.error("it fell off")
        return latency_of(self.ms, self.noise), {}

    def context(self):
        return {"place": self.place}

    def close(self): ...


class TestMeasuring:
    def test_every_reference_is_measured_at_its_published_size_and_in_the_tables_order(self):
        shelf = Shelf()
        measured = measure_references(shelf, Protocol())
        assert [one.reference for one in measured] == list(REFERENCES)
        assert shelf.asked == [(reference.name, reference.image_size) for reference in REFERENCES]

    def test_a_lost_link_is_not_the_networks_fault(self):
        shelf = Shelf(broken=[REFERENCES[0].name], error=LostLink)
        with pytest.raises(LostLink, match="it fell off"):
            measure_references(shelf, Protocol())
        assert len(shelf.asked) == 1

    def test_the_second_time_nothing_is_measured(self):
        first, second = Shelf(), Shelf(ms=9.0)
        assert measure_references(first, Protocol()) == measure_references(second, Protocol())
        assert second.asked == []

    @pytest.mark.parametrize("change", ["place", "protocol", "timm"])
    def test_a_figure_counts_only_where_and_how_it_was_measured(self, change, monkeypatch):
        measure_references(Shelf(), Protocol())
        shelf = Shelf(place="elsewhere" if change == "place" else "here")
        if change == "timm":
            monkeypatch.setattr(references, "version", lambda package: "0.0")
        measure_references(shelf, Protocol(visits=2 if change == "protocol" else 1))
        assert len(shelf.asked) == len(REFERENCES)

    def test_a_noisy_figure_is_measured_again(self):
        measure_references(Shelf(ms=9.0, noise="loud"), Protocol())
        again = measure_references(Shelf(ms=3.0), Protocol())
        assert {one.latency.median_ms for one in again} == {3.0}
        assert measure_references(Shelf(ms=5.0), Protocol()) == again

    def test_one_that_fails_is_left_out_with_its_reason(self):
        said = []
        measured = measure_references(Shelf(broken=["resnet18"]), Protocol(), note=said.append)
        assert len(measured) == len(REFERENCES) - 1
        assert "ResNet-18 is left out: it fell off" in said

    def test_what_is_known_needs_no_device(self):
        assert known_references({"place": "here"}) == []
        names = [reference.name for reference in REFERENCES]
        measure_references(Shelf(ms=9.0, broken=names[2:]), Protocol())
        measure_references(Shelf(ms=3.0, broken=[names[0], *names[2:]]), Protocol(visits=2))
        known = known_references({"place": "here"})
        assert [(one.reference.name, one.latency.median_ms) for one in known] == [(names[0], 9.0), (names[1], 3.0)]
        assert known_references({"place": "elsewhere"}) == []

    def test_a_damaged_or_unwritable_cache_is_no_obstacle(self, tmp_path, monkeypatch):
        measure_references(Shelf(), Protocol())
        (tmp_path / "cache/evit-nas/references.jsonl").write_text('{"context": {}}\nbroken\n')
        assert len(measure_references(Shelf(), Protocol())) == len(REFERENCES)
        (tmp_path / "file").write_text("")
        monkeypatch.setattr("evit_nas.latency.references.cache_folder", lambda: tmp_path / "file")
        assert len(measure_references(Shelf(), Protocol())) == len(REFERENCES)
