"""Distillation and the student's training: what they learn, and that they survive a kill."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mmad_bank.errors import FormatError, InputError, MmadBankError
from mmad_bank.methods.mdss import student_teacher
from mmad_bank.methods.mdss.pdn import PDN, quantile_loss, squared_difference
from mmad_bank.methods.mdss.student_teacher import ImageFolder, random_view, train_student, train_teacher

image_module = pytest.importorskip("PIL.Image")


class Colours(nn.Module):
    """An extractor without weights: mean colour and brightness of each cell, on its own grid."""

    grid, dim = (4, 4), 6

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        cells = nn.functional.adaptive_avg_pool2d(images, self.grid)
        cells = torch.cat([cells, 10 * cells.sum(1, keepdim=True), cells[:, :1] * 0 + 3.0, -cells[:, 1:2]], dim=1)
        return cells.flatten(2).transpose(1, 2)


class Interrupted(Exception):
    pass


class Breaking:
    """Images of which the n-th look-up fails."""

    def __init__(self, images: torch.Tensor, after: int) -> None:
        self.images, self.left = images, after

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        self.left -= 1
        if self.left < 0:
            raise Interrupted
        return self.images[index]


def pictures(n: int, size: int = 32, seed: int = 0) -> torch.Tensor:
    """Smooth colours, so that a small network can learn them."""
    coarse = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, size=(size, size), mode="bilinear").clamp(0, 1)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_a_teacher_learns_standardised_features() -> None:
    images = pictures(12)
    options = {"channels": 3, "width": 16, "batch": 6, "lr": 3e-3, "augment": False}
    features = Colours()(images).double().numpy()
    std = features.std((0, 1))
    std[4] = 1.0  # the constant dimension
    z = (features - features.mean((0, 1))) / std
    pairs = z.reshape(*z.shape[:2], 3, 2).mean(-1)  # six dimensions averaged to three
    target = torch.from_numpy(pairs).float().transpose(1, 2).unflatten(2, (4, 4))
    target = nn.functional.interpolate(target, size=PDN.grid(32), mode="bilinear", align_corners=False)

    def error(teacher: PDN) -> float:
        with torch.no_grad():
            return (teacher(images) - target).square().mean().item()

    before, after = (error(train_teacher(Colours(), images, steps=steps, **options)) for steps in (1, 60))
    assert before > 0.2
    assert after < 0.3 * before


def test_a_student_learns_the_foreground_only() -> None:
    torch.manual_seed(0)
    teacher = PDN(8, width=8).eval().requires_grad_(False)
    images = pictures(8, size=64, seed=1)
    masks = torch.zeros(8, 64, 64, dtype=torch.bool)
    masks[:, :, :12] = True  # the first three of 16 columns of cells, which see 41 pixels at most
    options = {"batch": 4, "quantiles": (0.5, 0.9), "lr": 1e-3}
    students = [train_student(teacher, images, masks, steps=steps, **options) for steps in (1, 80)]
    with torch.no_grad():
        inside = [squared_difference(teacher, one, images)[..., :3].mean().item() for one in students]
    assert inside[1] < 0.3 * inside[0]
    elsewhere = images.clone()
    elsewhere[..., 52:] = 0.5
    again = train_student(teacher, elsewhere, masks, steps=4, **options)
    assert same(again, train_student(teacher, images, masks, steps=4, **options))
    elsewhere[..., :9] = 0.5
    assert not same(again, train_student(teacher, elsewhere, masks, steps=4, **options))


def test_every_step_has_its_own_quantile_and_the_same_rate(monkeypatch, tmp_path: Path) -> None:
    seen: list[float] = []

    def recording(difference: torch.Tensor, mask: torch.Tensor, quantile: float) -> torch.Tensor:
        seen.append(quantile)
        return quantile_loss(difference, mask, quantile)

    monkeypatch.setattr(student_teacher, "quantile_loss", recording)
    masks = torch.ones(2, 32, 32, dtype=torch.bool)
    file = tmp_path / "state.pt"
    train_student(PDN(4, width=4), pictures(2), masks, steps=5, batch=2, resume=file)
    quarter = 0.009 * (0.5 - 0.5**1.5)
    assert seen == pytest.approx([0.99, 0.99 + quarter, 0.9945, 0.999 - quarter, 0.999])
    assert torch.load(file, weights_only=True)["optimizer"]["param_groups"][0]["lr"] == 1e-3


@pytest.mark.parametrize("kind", ["teacher", "student"])
def test_a_killed_training_ends_with_the_same_weights(tmp_path: Path, kind: str) -> None:
    images = pictures(5)
    masks = torch.rand(5, 32, 32, generator=torch.Generator().manual_seed(1)) < 0.7
    torch.manual_seed(3)
    frozen = PDN(4, width=4).eval()

    def run(data, **changes) -> PDN:
        options = {"steps": 6, "batch": 3, "seed": 2, "save_every": 2, **changes}
        if kind == "teacher":
            return train_teacher(Colours(), data, width=4, **options)
        return train_student(frozen, data, masks, **options)

    whole = run(images)
    file = tmp_path / "state.pt"
    looked_at = 1 + (5 if kind == "teacher" else 0)  # the first one's size, and the teacher's statistics
    with pytest.raises(Interrupted):
        run(Breaking(images, looked_at + 14), resume=file)  # in the fifth step
    assert torch.load(file, weights_only=True)["step"] == 4
    assert same(whole, run(images, resume=file))
    assert not same(whole, run(images, seed=4))
    with pytest.raises(FormatError, match="with seed 2, now asked for 5"):
        run(images, seed=5, resume=file)


def test_a_student_does_not_begin_as_its_teacher_did() -> None:
    images, masks = pictures(2), torch.ones(2, 32, 32, dtype=torch.bool)
    teacher = train_teacher(Colours(), images, width=4, steps=1, batch=1, lr=1e-9, seed=3)
    student = train_student(teacher, images, masks, steps=1, batch=1, lr=1e-9, seed=3)
    assert (teacher.conv1.weight - student.conv1.weight).abs().mean() > 0.02


def test_nan_stops_the_training_and_names_the_step() -> None:
    images = pictures(3)
    images[:, 0, 0, 0] = torch.nan
    masks = torch.ones(3, 32, 32, dtype=torch.bool)
    with pytest.raises(MmadBankError, match="train_student: the loss is nan at step 0 of 4"):
        train_student(PDN(4, width=4), images, masks, steps=4, batch=2)


def test_views_are_squares_of_the_picture_in_its_size() -> None:
    picture = pictures(1)[0]
    views = torch.stack([random_view(picture, torch.Generator().manual_seed(seed)) for seed in range(60)])
    assert views.shape == (60, 3, 32, 32)
    assert picture.min() - 1e-6 <= views.min() <= views.max() <= picture.max() + 1e-6
    grey = (views[:, 0] == views[:, 1]).all(dim=(1, 2))
    assert 1 <= int(grey.sum()) <= 15
    again = random_view(picture, torch.Generator().manual_seed(7))
    assert torch.equal(views[7], again)


def test_a_folder_of_images(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 10:30] = (255, 0, 51)
    image_module.fromarray(wide).save(tmp_path / "b" / "wide.png")
    image_module.fromarray(np.full((9, 9, 3), 102, np.uint8)).save(tmp_path / "a.PNG")
    (tmp_path / "notes.txt").write_text("no image")
    folder = ImageFolder(tmp_path, 16)
    assert [path.name for path in folder.paths] == ["a.PNG", "wide.png"]
    assert torch.allclose(folder[0], torch.full((3, 16, 16), 0.4))
    assert torch.allclose(folder[1], torch.tensor([1.0, 0.0, 0.2])[:, None, None].expand(3, 16, 16))
    with pytest.raises(InputError, match="expected a folder of images"):
        ImageFolder(tmp_path / "nowhere", 16)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: expected images"):
        ImageFolder(tmp_path / "empty", 16)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: train_teacher(Colours(), []), "images: expected 1 to"),
        (lambda: train_teacher(Colours(), pictures(1), channels=7), "channels: expected 1 to 6"),
        (lambda: train_teacher(Colours(), pictures(1), steps=0), "steps: expected 1 to"),
        (lambda: train_teacher(Colours(), pictures(1), lr=0.0), "lr: expected"),
        (lambda: train_student(PDN(4, width=4), pictures(2), [None]), "masks: expected 2"),
        (lambda: train_student(PDN(4, width=4), pictures(1), [None], quantiles=(0.9, 1.0)), "quantiles: expected"),
        (lambda: train_student(PDN(4, width=4), [torch.rand(3, 8, 9)], [None]), r"images\[0\]: expected \(3, S, S\)"),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
