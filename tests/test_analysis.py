"""Heads and channels with known answers: identical heads, dead channels, changes of the loss that can be computed."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models import save_for_hf
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from evit_nas.analysis import Analysis, analyze
from evit_nas.analysis.channels import head_rows, mixers, parts
from evit_nas.analysis.heads import by_head, head_similarity, nearest
from evit_nas.analysis.pruning import write_start
from evit_nas.analysis.taylor import importance
from evit_nas.arch import ArchConfig
from evit_nas.config import Conditions
from evit_nas.errors import MeasurementError, UsageError
from evit_nas.latency import TimmModel
from evit_nas.latency.profile import Profile, take_apart
from evit_nas.network.model import EfficientViT
from evit_nas.network.saved import Saved
from tests.networks import VARIANTS, lively_network, tiny_arch
from tests.test_profile import nodes_lasting, trace_of
from tests.trainings import ARCH, PREPROCESSING, finished


def batches(images: int = 6, size: int = 3, side: int = 64) -> list:
    """Random images and labels, always the same ones."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(images, 3, side, side, generator=generator)
    y = torch.randint(0, 10, (images,), generator=generator)
    return list(zip(x.split(size), y.split(size), strict=True))


def by_name(model: nn.Module, data: list) -> dict[str, Tensor]:
    return {part.name: torch.tensor(part.importance) for part in importance(model, data)[0]}


def vit(**changes: object) -> VisionTransformer:
    torch.manual_seed(0)
    fields = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 10}
    return VisionTransformer(**fields | changes).eval()


def trained_a_little(model: nn.Module) -> nn.Module:
    """With norms that have learned something."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.1)
    return model


def swin() -> SwinTransformer:
    torch.manual_seed(0)
    return SwinTransformer(
        img_size=32, patch_size=2, window_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 4), num_classes=10
    ).eval()


class TestHeads:
    def test_similarity_is_that_of_the_nearest_other_head_computed_by_hand(self):
        heads = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [1.0, 1.0], [0.0, -3.0]]])
        assert nearest(heads)[0].tolist() == pytest.approx([1.0, 1.0, 0.5**0.5, 0.0], abs=1e-6)

    @pytest.mark.parametrize("mixer", ["softmax", "linear"])
    def test_two_identical_heads_have_similarity_1_and_only_they(self, mixer):
        model = lively_network(tiny_arch(heads=4, width=64, cascade=False, mixer=mixer))
        block = "stages.0.blocks.0.mixer.fn"
        attention, stage = model.get_submodule(block), model.arch.stages[0]
        one, other = (torch.cat([torch.arange(2048)[rows] for rows in head_rows(stage, j).values()]) for j in (1, 3))
        for tensor in (*attention.qkv.conv.parameters(), *attention.qkv.bn.parameters(), *attention.qkv.bn.buffers()):
            if tensor.ndim:
                tensor.data[other] = tensor.data[one]
        local = attention.q_local if mixer == "softmax" else attention.v_local.fn
        for tensor in (*local.parameters(), *local.buffers()):
            if tensor.ndim:
                by_head = tensor.data.unflatten(0, (4, -1))
                by_head[3] = by_head[1]
        if mixer == "softmax":
            attention.bias.table.data[3] = attention.bias.table.data[1]
            attention.register_forward_pre_hook(lambda _, x: (x[0][:, :16].repeat(1, 4, 1, 1),))  # equal inputs
        found = head_similarity(model, batches())[0]
        assert found.block == block
        assert found.similarity[1] == pytest.approx(1, abs=1e-5)
        assert found.similarity[3] == pytest.approx(1, abs=1e-5)
        assert max(found.similarity[0], found.similarity[2]) < 0.999

    def test_the_mean_is_over_images_however_they_are_batched(self):
        model = lively_network(tiny_arch())
        together, apart = head_similarity(model, batches(size=6)), head_similarity(model, batches(size=1))
        for one, other in zip(together, apart, strict=True):
            assert one.similarity == pytest.approx(other.similarity, abs=1e-5)
        first = head_similarity(model, batches()[:1])[0].similarity
        second = head_similarity(model, batches()[1:])[0].similarity
        mean = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
        assert together[0].similarity == pytest.approx(mean, abs=1e-5)

    def test_turning_the_cascade_off_shows(self):
        cascaded, parallel = (
            head_similarity(lively_network(tiny_arch(cascade=cascade)), batches())[0] for cascade in (True, False)
        )
        assert cascaded.mean != pytest.approx(parallel.mean, abs=1e-3)

    def test_windows_of_an_image_count_together(self):
        tokens = torch.arange(2 * 3 * 4 * 6.0).reshape(6, 4, 6)  # 2 images, 3 windows of 4 tokens, 2 heads of 3
        outputs = by_head(tokens, heads=2, images=2)
        assert outputs.shape == (2, 2, 36)
        assert outputs[1, 1].tolist() == tokens[3:, :, 3:].flatten().tolist()

    def test_a_single_head_has_no_other_to_be_compared_with(self):
        assert head_similarity(lively_network(tiny_arch(heads=1)), batches()) == []

    @pytest.mark.parametrize("make", [vit, swin])
    def test_the_papers_own_subjects_can_be_looked_at(self, make):
        model = make()
        found = head_similarity(model, batches(side=32))
        assert [len(block.similarity) for block in found] == [layer.heads for layer in mixers(model)]
        assert all(-1 <= value <= 1.0001 for block in found for value in block.similarity)


class TestImportance:
    @pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
    def test_every_channel_of_every_kind_of_block_has_one(self, changes):
        arch = tiny_arch(**changes)
        found, _ = importance(lively_network(arch), batches())
        sizes = {}
        for part in found:
            sizes.setdefault((part.kind, part.stage), []).append(len(part.importance))
        for index, stage in enumerate(arch.stages):
            assert sizes["width", index] == [stage.width]
            attends = stage.mixer != "none"
            assert sizes.get(("q", index), []) == sizes.get(("k", index), []) == [stage.qk_dim] * stage.heads * attends
            assert sizes.get(("v", index), []) == [stage.v_dim] * stage.heads * attends
            downsamplings = 1 if index in (0, 2) else 2
            assert sizes["ffn", index] == [stage.ffn_dim] * (2 * stage.ffn_count + downsamplings)
        dead = {(part.kind, part.stage) for part in found if not any(part.importance)}
        softmax = arch.stages[2].mixer == "softmax"  # over the one token of the last map: always 1
        assert dead == ({("q", 2), ("k", 2)} if softmax else set())

    @pytest.mark.parametrize(
        ("layer", "part"),
        [
            ("stages.1.blocks.0.mixer.fn.heads.1.qkv", "stages.1.blocks.0.mixer.fn.heads.1.{}"),
            ("stages.0.blocks.0.before.0.ffn.fn.expand", "stages.0.blocks.0.before.0.ffn"),
            ("stages.2.blocks.0.mixer.fn.proj", "stages.2.blocks.0.mixer.fn.proj"),
            ("stages.1.downsample.reduce", "stages.1.downsample.merge"),
        ],
    )
    def test_a_channel_multiplied_by_zero_has_importance_0_and_no_other(self, layer, part):
        model = lively_network(tiny_arch())
        norm = model.get_submodule(layer).bn
        dead = {"q": 3, "k": 8 + 3, "v": 16 + 5} if "{}" in part else {"": 4}
        with torch.no_grad():
            for row in dead.values():
                norm.weight[row] = norm.bias[row] = 0
        found = by_name(model, batches())
        offset = {"q": 0, "k": 8, "v": 16, "": 0}
        for kind, row in dead.items():
            scores = found[part.format(kind)]
            assert (scores == 0).nonzero().flatten().tolist() == [row - offset[kind]]

    def test_it_is_gradient_times_weight(self):
        model, (images, labels) = lively_network(tiny_arch()), batches(images=2)[0]
        images, labels = images[:1].repeat(2, 1, 1, 1), labels[:1].repeat(2)  # the same one twice
        norm = model.get_submodule("stages.0.blocks.0.after.0.ffn.fn.expand").bn
        F.cross_entropy(model(images), labels).backward()  # the mean over both
        by_hand = (norm.weight * norm.weight.grad + norm.bias * norm.bias.grad).abs()
        found = by_name(model, [(images, labels)])["stages.0.blocks.0.after.0.ffn"]
        torch.testing.assert_close(found, by_hand.detach(), rtol=1e-3, atol=1e-7)

    def test_it_foretells_what_the_loss_changes_by_where_the_loss_is_straight(self):
        model, data = lively_network(tiny_arch()), batches(images=1, size=1)
        scores = by_name(model, data)["stages.1"]  # the width: every layer that writes the channel is turned down
        width = next(part for part in parts(model) if part.name == "stages.1")
        layers = [model.get_submodule(path) for path, _ in width.places]
        images, labels = data[0]
        channel, step = int(scores.argmax()), 1e-3
        with torch.no_grad():
            before = F.cross_entropy(model.double()(images.double()), labels)
            for layer in layers:
                layer.bn.weight[channel] *= 1 - step
                layer.bn.bias[channel] *= 1 - step
            after = F.cross_entropy(model(images.double()), labels)
        assert float((after - before).abs() / step) == pytest.approx(float(scores[channel]), rel=0.05)

    def test_batches_of_any_size_give_the_same(self):
        model = lively_network(tiny_arch(window=3))
        together, apart = by_name(model, batches(size=6)), by_name(model, batches(size=1))
        for name in together:
            torch.testing.assert_close(together[name], apart[name], rtol=1e-3, atol=1e-6)

    def test_it_leaves_no_mark(self):
        model = lively_network(tiny_arch())
        before = {name: value.clone() for name, value in model.state_dict().items()}
        importance(model, batches())
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert all(p.grad is None and p.requires_grad for p in model.parameters())
        assert not any(module._forward_hooks for module in model.modules())

    @pytest.mark.parametrize("make", [vit, swin])
    def test_in_a_product_a_query_channel_matters_as_much_as_its_key_channel(self, make):
        model = make()
        found = by_name(model, batches(side=32))
        for layer in mixers(model):
            query, key = found[f"{layer.path}.q"], found[f"{layer.path}.k"]
            assert query.sum() > 0
            torch.testing.assert_close(query, key, rtol=1e-2, atol=1e-6)

    def test_stages_of_swin_are_told_apart(self):
        found, _ = importance(swin(), batches(side=32))
        assert {part.stage for part in found} == {0, 1}
        assert {part.kind for part in found} == {"q", "k", "v", "projection", "ffn"}

    def test_a_network_without_attention_cannot_be_taken_apart(self):
        with pytest.raises(UsageError, match="an analysis needs an EfficientViT"):
            importance(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 10)), batches())


class TestAnalyze:
    def test_a_training_is_looked_at_on_its_own_images(self, training):
        found = analyze(str(training), "digits", images=100, batch=32)
        assert (found.network, found.data, found.images, found.notes) == ("tiny", "digits", 100, ())
        assert found.training_top1 > 80
        assert len(found.heads) == 3
        assert {part.kind for part in found.channels} >= {"q", "k", "v", "projection", "ffn", "width"}
        assert found.profile is None
        assert Analysis.model_validate_json(found.model_dump_json()) == found

    def test_the_same_images_give_the_same_figures(self, training):
        one, other = (analyze(str(training), "digits", images=64, batch=batch) for batch in (64, 24))
        assert one.training_top1 == other.training_top1
        for a, b in zip(one.heads, other.heads, strict=True):
            assert a.similarity == pytest.approx(b.similarity, abs=1e-4)

    def test_the_profile_is_that_of_its_architecture_on_the_device(self, training, monkeypatch):
        asked = []

        def profiled(subject: ArchConfig, conditions: Conditions) -> Profile:
            asked.append((subject, conditions))
            return take_apart(trace_of(*[nodes_lasting(52, 11, 3, 42)] * 8), 0.1, 0.5, 10.0, conditions)

        monkeypatch.setattr("evit_nas.latency.profile.profile", profiled)
        found = analyze(str(training), "digits", images=32, conditions=Conditions())
        assert asked == [(found.arch, Conditions())]
        assert found.profile.total.memory_bound_share == pytest.approx(0.1)

    @pytest.mark.parametrize("side", [96, 256, 384])
    def test_weights_of_another_image_size_are_looked_at_and_cut_at_theirs(self, side, tmp_path, monkeypatch):
        """Of m0 in a folder of timm's, whose tensors are those of 224 px, or of no size that they tell."""
        network = trained_a_little(
            timm.create_model(
                "efficientvit_m0", img_size=side, num_classes=10, pretrained_cfg_overlay={"input_size": (3, side, side)}
            )
        )
        save_for_hf(network, tmp_path / "mine", model_config={"label_names": list("0123456789")})
        asked = []

        def profiled(subject: ArchConfig, conditions: Conditions) -> Profile:
            asked.append(subject.image_size)
            return take_apart(trace_of(*[nodes_lasting(52, 11, 3, 42)] * 8), 0.1, 0.5, 10.0, conditions)

        monkeypatch.setattr("evit_nas.latency.profile.profile", profiled)
        found = analyze(str(tmp_path / "mine"), "digits", images=8, batch=4, conditions=Conditions())
        assert asked == [found.arch.image_size] == [side]
        folder = tmp_path / "start"
        write_start(str(tmp_path / "mine"), ArchConfig.preset("m0"), found.channels, side, folder)
        assert ArchConfig.load(folder / "arch.yaml").image_size == side

    def test_a_network_in_a_folder_is_profiled_as_what_it_is_before_anything_that_takes_long(
        self, tmp_path, monkeypatch
    ):
        network = trained_a_little(timm.create_model("test_vit", num_classes=10))
        save_for_hf(network, tmp_path / "mine", model_config={"label_names": list("0123456789")})
        asked = []

        def refused(subject: TimmModel, conditions: Conditions) -> Profile:
            asked.append(subject)
            raise MeasurementError("no such luck.")

        monkeypatch.setattr("evit_nas.latency.profile.profile", refused)
        monkeypatch.setattr("evit_nas.analysis.taylor.importance", None)
        with pytest.raises(MeasurementError, match="no such luck"):
            analyze(str(tmp_path / "mine"), "digits", images=16, conditions=Conditions())
        assert asked == [TimmModel("test_vit", 160)]

    def test_untrained_weights_are_refused(self, monkeypatch):
        for model in (EfficientViT(ARCH).eval(), vit(num_classes=17)):
            saved = Saved("fresh", model, None, PREPROCESSING)
            monkeypatch.setattr("evit_nas.network.saved.open_saved", lambda text, saved=saved: saved)
            with pytest.raises(UsageError, match="fresh holds no trained weights"):
                analyze("fresh", "digits", images=16)

    def test_weights_that_know_nothing_are_marked(self, monkeypatch):
        saved = Saved("wild", lively_network(ARCH), None, PREPROCESSING)
        monkeypatch.setattr("evit_nas.network.saved.open_saved", lambda text: saved)
        told = []
        found = analyze("wild", "digits", images=100, note=told.append)
        assert len(found.notes) == 1
        assert "its weights look untrained" in found.notes[0]
        assert told == list(found.notes)

    def test_without_a_loss_heads_are_looked_at_only(self, monkeypatch):
        saved = Saved("deit", trained_a_little(vit(num_classes=17)), None, PREPROCESSING.model_copy(update=COLOUR))
        monkeypatch.setattr("evit_nas.network.saved.open_saved", lambda text: saved)
        found = analyze("timm:deit@file", "digits", images=16)
        assert (found.arch, found.channels, found.training_top1) == (None, (), None)
        assert len(found.heads) == 2
        assert "deit has 17 outputs, digits has 10 classes" in found.notes[0]

    def test_weights_that_do_not_say_how_images_are_normalised_are_refused_without_a_folder_that_does(self, training):
        file = f"{training / 'arch.yaml'}={training / 'model.safetensors'}"
        with pytest.raises(UsageError, match="--like FOLDER"):
            analyze(file, "digits", images=16)
        assert analyze(file, "digits", images=16, like=str(training)).images == 16

    def test_timms_networks_without_weights_are_refused(self):
        with pytest.raises(UsageError, match="nothing is downloaded here"):
            analyze("timm:swin_tiny_patch4_window7_224", "digits", images=16)

    def test_too_few_images_are_refused(self, training):
        with pytest.raises(UsageError, match="at least 2 images and a batch of at least 1, got 1 and 64"):
            analyze(str(training), "digits", images=1)


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("analysis") / "tiny")


COLOUR = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3}
