"""Distillation: the teacher sees what the student sees, in its own units, and the loss is that of the paper."""

import math
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evit_nas.arch import ArchConfig
from evit_nas.data.preprocessing import Preprocessing
from evit_nas.errors import UsageError
from evit_nas.network.model import build
from evit_nas.training.checkpoint import save_weights
from evit_nas.training.teacher import Teacher, distillation_loss, open_teacher
from tests.networks import lively_network, relative_error, tiny_arch
from tests.test_transfer import CLASSES, training

STUDENT = Preprocessing(input_size=(3, 64, 64), mean=(0.2, 0.3, 0.4), std=(0.1, 0.2, 0.3))
OWN = Preprocessing(input_size=(3, 64, 64), mean=(0.5, 0.6, 0.7), std=(0.4, 0.5, 0.6))


class Seen(nn.Module):
    """Answers with the mean of each channel, and keeps what it was given."""

    def forward(self, images: Tensor) -> Tensor:
        self.images = images
        return images.mean((2, 3))


def normalised(pixels: Tensor, by: Preprocessing) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (by.mean, by.std))
    return (pixels - mean) / std


def pixels(side: int = 64, channels: int = 3) -> Tensor:
    return torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(0))


# What the teacher sees


def test_the_teacher_sees_the_same_pixels_in_its_own_units() -> None:
    seen = Seen()

    Teacher(seen, OWN, STUDENT)(normalised(pixels(), STUDENT))

    assert torch.allclose(seen.images, normalised(pixels(), OWN), atol=1e-5)


def test_images_are_brought_to_the_size_of_the_teacher() -> None:
    seen = Seen()

    Teacher(seen, OWN.model_copy(update={"input_size": (3, 96, 128)}), STUDENT)(normalised(pixels(), STUDENT))

    resized = F.interpolate(normalised(pixels(), OWN), (96, 128), mode="bicubic", antialias=True)
    assert torch.allclose(seen.images, resized, atol=1e-4)


def test_grey_images_reach_all_channels_of_the_teacher() -> None:
    seen = Seen()
    grey = Preprocessing(input_size=(1, 64, 64), mean=(0.2,), std=(0.1,))

    Teacher(seen, OWN, grey)(normalised(pixels(channels=1), grey))

    assert torch.allclose(seen.images, normalised(pixels(channels=1).expand(-1, 3, -1, -1), OWN), atol=1e-5)


def test_a_teacher_of_grey_images_does_not_teach_a_student_of_colours() -> None:
    with pytest.raises(UsageError, match="must take images of the student's 3 channels, this one takes 1"):
        Teacher(Seen(), OWN.model_copy(update={"input_size": (1, 64, 64)}), STUDENT)


def test_a_teacher_never_trains() -> None:
    network = lively_network(tiny_arch())
    teacher = Teacher(network, OWN, STUDENT).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}

    logits = teacher(torch.randn(4, 3, 64, 64, requires_grad=True))

    assert not logits.requires_grad
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


# Which network it is


def test_a_trained_network_teaches_in_the_order_of_the_students_classes(tmp_path: Path) -> None:
    network = lively_network(tiny_arch())
    folder = training(tmp_path / "run", network)

    teacher = open_teacher(str(folder), CLASSES[::-1], STUDENT)

    half = Preprocessing(input_size=(3, 64, 64), mean=(0.5,) * 3, std=(0.5,) * 3)
    with torch.no_grad():
        expected = network(normalised(pixels(), half)).flip(1)
    assert relative_error(teacher(normalised(pixels(), STUDENT)), expected) < 1e-4


def test_other_classes_are_listed(tmp_path: Path) -> None:
    folder = training(tmp_path / "run", lively_network(tiny_arch()))

    with pytest.raises(UsageError, match=r"got 10; missing: k; unknown here: j\."):
        open_teacher(str(folder), "abcdefghik", STUDENT)


def test_a_network_of_timms_teaches_with_weights_from_a_file(tmp_path: Path) -> None:
    network = timm.create_model("test_resnet", num_classes=10).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")

    teacher = open_teacher(f"timm:test_resnet@{tmp_path / 'weights.pth'}", CLASSES, STUDENT)

    side = teacher.size[0]
    images = F.interpolate(normalised(pixels(), _imagenet(side)), teacher.size, mode="bicubic", antialias=True)
    with torch.no_grad():
        assert relative_error(teacher(normalised(pixels(), STUDENT)), network(images)) < 1e-3


def _imagenet(side: int) -> Preprocessing:
    config = timm.get_pretrained_cfg("test_resnet")
    return Preprocessing(input_size=(3, side, side), mean=config.mean, std=config.std)


def test_a_network_of_timms_must_have_as_many_classes(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet", num_classes=7).state_dict(), tmp_path / "weights.pth")

    with pytest.raises(UsageError, match=r"must have the 10 classes of the data, got 7"):
        open_teacher(f"timm:test_resnet@{tmp_path / 'weights.pth'}", CLASSES, STUDENT)


def test_missing_weights_are_not_downloaded_but_the_command_is_told(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    with pytest.raises(
        UsageError, match=r"hf download timm/resnet18\.\S+ model.safetensors .*; or name .*resnet18@FILE"
    ):
        open_teacher("timm:resnet18", CLASSES, STUDENT)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("timm:resnet1818", "timm has no network called 'resnet1818'"),
        ("timm:resnet18.of_no_training", "timm has no network called 'resnet18.of_no_training'"),
        ("nowhere", "nowhere: no such network. It can be the folder of a training, "),
        (".", "holds no trained network"),
    ],
)
def test_what_is_no_network_is_refused(text: str, message: str, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as error:
        open_teacher(text, CLASSES, STUDENT)
    assert message in str(error.value)


def test_weights_alone_are_no_teacher_and_what_is_one_is_said(tmp_path: Path) -> None:
    save_weights(tmp_path / "m0.safetensors", build(ArchConfig.preset("m0"), seed=0).state_dict(), {})
    with pytest.raises(UsageError, match="weights alone do not tell") as error:
        open_teacher(str(tmp_path / "m0.safetensors"), CLASSES, STUDENT)
    assert "A teacher can be the folder of a training" in str(error.value)
    assert "a file of one of m0 to m5" not in str(error.value)


# The loss


def test_soft_distillation_is_the_divergence_between_softened_answers() -> None:
    student, teacher = torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([[0.0, 0.0]])
    divergence = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)

    loss = distillation_loss(student, teacher, torch.tensor(2.0), alpha=0.25)
    softened = distillation_loss(3 * student, 3 * teacher, torch.tensor(2.0), alpha=0.25, tau=3.0)

    assert loss.item() == pytest.approx(0.75 * 2.0 + 0.25 * divergence)
    assert softened.item() == pytest.approx(0.75 * 2.0 + 0.25 * 9 * divergence)


def test_hard_distillation_is_the_cross_entropy_with_the_teachers_decision() -> None:
    student, teacher = torch.tensor([[math.log(3.0), 0.0]] * 2), torch.tensor([[1.0, 5.0], [2.0, 1.0]])

    loss = distillation_loss(student, teacher, torch.tensor(0.0), alpha=1.0, kind="hard")

    assert loss.item() == pytest.approx((math.log(4.0) + math.log(4.0 / 3.0)) / 2)


def test_a_student_that_agrees_learns_from_the_targets_only() -> None:
    logits = torch.randn(5, 7, requires_grad=True)

    distillation_loss(logits, logits.detach(), torch.tensor(0.0), tau=2.0).backward()

    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-6


def test_the_soft_gradient_is_the_difference_of_the_answers() -> None:
    student, teacher = torch.randn(5, 7, requires_grad=True), torch.randn(5, 7)

    distillation_loss(student, teacher, torch.tensor(0.0), alpha=1.0, tau=2.0).backward()

    difference = (student.detach() / 2).softmax(1) - (teacher / 2).softmax(1)
    assert torch.allclose(student.grad, 2 * difference / 5, atol=1e-6)


@pytest.mark.parametrize("wrong", [{"alpha": 1.5}, {"tau": 0.0}, {"kind": "medium"}], ids=str)
def test_a_wrong_setting_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="must be"):
        distillation_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor(0.0), **wrong)
