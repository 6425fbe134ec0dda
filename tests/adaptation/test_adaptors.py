"""LSFA's parts: adaptors, the losses against plain definitions, the FIFO banks, the training."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmad_bank.adaptation import Adaptor, FeatureAdaptation, FeatureQueue, Layer, train_adaptation, training
from mmad_bank.adaptation.losses import LOSSES, alignment_loss, compactness_loss, prototype
from mmad_bank.errors import FormatError, InputError, MmadBankError


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def image(seed: int, patches: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Patch features of one image; two patches have no point."""
    xyz, rgb = draw(patches, 6, seed=seed) + 1, draw(patches, 4, seed=1000 + seed)
    xyz[[0, 5]] = 0
    return xyz, rgb


IMAGES = [image(seed) for seed in range(5)]
FAST = {"steps": 6, "batch": 2, "queue_size": 30}


# Adaptors.


def test_an_adaptor_is_the_post_norm_layer_of_the_textbook() -> None:
    """Attention, residual, norm, ReLU MLP, residual, norm, written out."""
    torch.manual_seed(0)
    adaptor = Adaptor(8, heads=2).eval()
    adaptor.mean.fill_(0.5)
    adaptor.std.fill_(2.0)
    patches = draw(2, 5, 8)
    x, layer = (patches - 0.5) / 2, adaptor.layer
    q, k, v = F.linear(x, layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias).chunk(3, dim=-1)
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        weights = (q[..., part] @ k[..., part].transpose(1, 2) / 2).softmax(-1)
        heads.append(weights @ v[..., part])
    x = layer.norm1(x + layer.self_attn.out_proj(torch.cat(heads, -1)))
    x = layer.norm2(x + layer.linear2(F.relu(layer.linear1(x))))
    assert layer.linear1.out_features == 32
    with torch.no_grad():
        torch.testing.assert_close(adaptor(patches), x.detach(), atol=1e-5, rtol=1e-5)


def test_patches_without_a_point_stay_zero_and_are_not_attended_to() -> None:
    torch.manual_seed(0)
    adaptor = Adaptor(6).eval()
    patches = draw(1, 7, 6)
    patches[0, 3:] = 0
    with torch.no_grad():
        whole, alone = adaptor(patches), adaptor(patches[:, :3])
    assert (whole[0, 3:] == 0).all()
    torch.testing.assert_close(whole[:, :3], alone)


def test_a_residual_adaptor_starts_as_the_identity_and_a_file_says_what_it_is(tmp_path: Path) -> None:
    adaptation = FeatureAdaptation(6, 4, layer="residual").eval()
    patches = {"xyz": draw(2, 5, 6), "rgb": draw(2, 5, 4)}
    for name, rows in adaptation.adapt(patches).items():
        torch.testing.assert_close(rows, patches[name])
    trained = train_adaptation(IMAGES, **FAST, layer="residual")
    after = trained.adapt(patches)
    assert (after["rgb"] - patches["rgb"]).abs().max() > 1e-4
    trained.save(tmp_path / "residual.safetensors")
    again = FeatureAdaptation(6, 4).load_checkpoint(tmp_path / "residual.safetensors").eval()
    assert all(torch.equal(after[name], rows) for name, rows in again.adapt(patches).items())


def test_the_linear_adaptor_projects_each_patch_and_zeros_stay() -> None:
    torch.manual_seed(0)
    adaptor, patches = Adaptor(6, layer="linear").eval(), draw(2, 5, 6)
    adaptor.mean.fill_(0.5)
    adaptor.std.fill_(2.0)
    patches[1, 3] = 0
    expected = (patches - 0.5) / 2 @ adaptor.layer.weight.T + adaptor.layer.bias
    expected[1, 3] = 0
    with torch.no_grad():
        torch.testing.assert_close(adaptor(patches), expected)


def test_the_convolutions_are_those_of_the_grid() -> None:
    """PyTorch's 1×1 convolutions of the map (B, D, h, w), with a ReLU between."""
    torch.manual_seed(0)
    adaptor, patches = Adaptor(6, layer="convolution").eval(), draw(2, 20, 6)
    grid = patches.view(2, 4, 5, 6).permute(0, 3, 1, 2)
    first, last = adaptor.layer[0], adaptor.layer[2]
    grid = F.relu(F.conv2d(grid, first.weight[..., None], first.bias))
    grid = F.conv2d(grid, last.weight[..., None], last.bias)
    with torch.no_grad():
        torch.testing.assert_close(adaptor(patches), grid.flatten(2).transpose(1, 2))


def test_two_layers_are_one_after_the_other_with_weights_of_their_own() -> None:
    torch.manual_seed(0)
    both, patches = Adaptor(6, layer="two_layers").eval(), draw(2, 5, 6)
    patches[0, 2] = 0
    first, second = Adaptor(6).eval(), Adaptor(6).eval()
    first.layer, second.layer = both.layer
    assert not torch.equal(first.layer.linear1.weight, second.layer.linear1.weight)
    with torch.no_grad():
        torch.testing.assert_close(both(patches), second(first(patches)))


@pytest.mark.parametrize("layer", get_args(Layer))
def test_every_kind_is_trained_and_a_file_says_what_it_is(tmp_path: Path, layer: Layer) -> None:
    before = train_adaptation(IMAGES, **{**FAST, "steps": 1, "lr": 1e-30}, layer=layer)
    trained = train_adaptation(IMAGES, **FAST, layer=layer)
    patches = {"xyz": draw(2, 5, 6), "rgb": draw(2, 5, 4)}
    after = trained.adapt(patches)
    assert all((after[name] - rows).abs().max() > 1e-5 for name, rows in before.adapt(patches).items())
    trained.save(tmp_path / "trained.safetensors")
    other: Layer = "linear" if layer == "vanilla" else "vanilla"
    again = FeatureAdaptation(6, 4, layer=other).load_checkpoint(tmp_path / "trained.safetensors").eval()
    assert all(adaptor.kind == layer for adaptor in again.adaptors.values())
    assert all(torch.equal(after[name], rows) for name, rows in again.adapt(patches).items())


def test_heads_divide_the_dimension() -> None:
    assert [Adaptor(dim).heads for dim in (768, 1152, 656, 33, 13)] == [12, 12, 8, 11, 1]
    with pytest.raises(InputError, match="divisor of 8"):
        Adaptor(8, heads=3)


# Losses.


def test_the_alignment_loss_is_equation_2() -> None:
    rgb, xyz = draw(9, 5), draw(9, 5, seed=1)
    a, b = rgb.double().numpy(), xyz.double().numpy()
    terms = [-np.log(np.exp(a[i] @ b[i]) / sum(np.exp(a[i] @ b[k]) for k in range(9))) for i in range(9)]
    assert float(alignment_loss(rgb, xyz)) == pytest.approx(np.mean(terms), rel=1e-5)


@pytest.mark.parametrize("kind", ["distance", "mse"])
def test_the_compactness_loss_and_its_gradient_are_those_of_the_nearest_entry(kind: str) -> None:
    rows, entries = draw(7, 3), draw(20, 3, seed=1)
    queue = FeatureQueue(20, 3)
    queue.enqueue(entries)
    features = rows.clone().requires_grad_()
    compactness_loss(features, queue, kind).backward()
    assert features.grad is not None
    a, b = rows.double().numpy(), entries.double().numpy()
    distances = np.linalg.norm(a[:, None] - b[None], axis=2)
    near = b[distances.argmin(1)]
    if kind == "distance":
        expected, gradient = distances.min(1).mean(), (a - near) / distances.min(1)[:, None] / 7
    else:
        expected, gradient = ((a - near) ** 2).mean(), 2 * (a - near) / 21
    assert float(compactness_loss(rows, queue, kind)) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(features.grad.numpy(), gradient, atol=1e-6)


def test_an_empty_bank_costs_nothing_and_an_entry_itself_has_no_gradient() -> None:
    queue = FeatureQueue(4, 2)
    features = draw(3, 2).requires_grad_()
    loss = compactness_loss(features, queue)
    loss.backward()
    assert loss.item() == 0
    assert features.grad is not None
    assert (features.grad == 0).all()
    queue.enqueue(features)
    features.grad = None
    compactness_loss(features, queue).backward()
    assert (features.grad == 0).all()


def test_a_prototype_is_the_centre_of_the_largest_cluster() -> None:
    groups = [draw(n, 3, seed=n) * 0.1 + centre for n, centre in ((5, 0.0), (9, 10.0), (4, -10.0))]
    patches = torch.cat(groups)[torch.randperm(18, generator=torch.Generator().manual_seed(0))]
    torch.testing.assert_close(prototype(patches, 3), groups[1].mean(0))
    torch.testing.assert_close(prototype(patches, 1), patches.mean(0))
    torch.testing.assert_close(prototype(patches[:1], 4), patches[0])
    leaf = patches.clone().requires_grad_()
    prototype(leaf, 3).sum().backward()
    assert leaf.grad is not None
    inside = patches.mean(1) > 5
    assert torch.equal(leaf.grad, torch.where(inside[:, None], 1 / 9, 0.0).expand(18, 3))


def test_prototypes_end_where_scikit_learns_k_means_does() -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    patches = torch.cat([draw(40, 4, seed=n) * 0.4 + draw(4, seed=50 + n) * 4 for n in range(3)])
    from mmad_bank.ops import k_center_greedy

    start = patches[k_center_greedy(patches, 3)].numpy()
    fitted = cluster.KMeans(3, init=start, n_init=1, max_iter=300, tol=0).fit(patches.numpy())
    largest = np.bincount(fitted.labels_).argmax()
    np.testing.assert_allclose(prototype(patches, 3).numpy(), fitted.cluster_centers_[largest], atol=1e-4)


# FIFO banks.


def test_the_oldest_row_leaves_first() -> None:
    queue = FeatureQueue(5, 1)
    kept: list[float] = []
    number = 0.0
    for n in (2, 2, 3, 5, 1, 4, 7, 1):
        rows = torch.arange(number, number + n)[:, None]
        number += n
        queue.enqueue(rows)
        kept = [*kept, *rows[:, 0].tolist()][-5:]
        held = queue.nearest(torch.arange(number)[:, None])[:, 0].unique().tolist()
        assert held == kept
        assert len(queue) == len(kept)


def test_a_bank_comes_back_from_its_state() -> None:
    one, other = FeatureQueue(5, 1), FeatureQueue(5, 1)
    one.enqueue(torch.arange(7.0)[:, None])
    other.load_state_dict(one.state_dict())
    for queue in (one, other):
        queue.enqueue(torch.tensor([[10.0], [11.0]]))
    places = torch.arange(12.0)[:, None]
    assert torch.equal(one.nearest(places), other.nearest(places))
    assert other.nearest(places)[:, 0].unique().tolist() == [4, 5, 6, 10, 11]


def test_a_full_bank_is_searched_as_a_ring_not_as_a_list() -> None:
    """A row that was overwritten is gone: off by one, and 2 would still be found."""
    queue = FeatureQueue(3, 1)
    queue.enqueue(torch.tensor([[0.0], [1.0], [2.0]]))
    queue.enqueue(torch.tensor([[100.0], [101.0], [102.0]]))
    assert queue.nearest(torch.tensor([[2.0]])).item() == 100


# Training.


def plain_losses(monkeypatch: pytest.MonkeyPatch, **changes) -> list[float]:
    """The values of the losses of a training, as it computes them."""
    seen: list[float] = []
    original = training.Training.losses

    def spy(self, step):
        for loss in original(self, step):
            seen.append(float(loss))
            yield loss

    monkeypatch.setattr(training.Training, "losses", spy)
    train_adaptation(IMAGES, **{**FAST, **changes})
    return seen


@pytest.mark.parametrize("groups", [None, [0, 1, 0, 1, 1]])
def test_the_first_losses_are_equation_9(monkeypatch: pytest.MonkeyPatch, groups: list[int] | None) -> None:
    """Written out from untrained adaptors: a rate of next to nothing leaves them, dropout is off.

    Each category's features are compared with those of its own images that came before.
    """
    monkeypatch.setattr(nn.Dropout, "forward", lambda self, x: x)
    category = groups or [0] * 5
    seen = plain_losses(monkeypatch, steps=4, lr=1e-30, prototypes="mean", groups=groups)
    run = training.Training(IMAGES, _arguments(steps=2, lr=1e-30, prototypes="mean"), torch.device("cpu"))
    run.model.eval()
    banks: dict[tuple[str, int], list[torch.Tensor]] = {}
    for step, value in enumerate(seen):
        vectors = {"xyz": [], "rgb": []}
        drawn = list(dict.fromkeys(training.sample_order(5, step * 2, 2, 0)))
        adapted = []
        for number in drawn:
            xyz, rgb = IMAGES[number]
            with torch.no_grad():
                own = {"xyz": run.adaptation.adaptors["xyz"](xyz[None])[0],
                       "rgb": run.adaptation.adaptors["rgb"](rgb[None])[0]}  # fmt: skip
            on = (xyz != 0).any(1)
            adapted.append({"xyz": own["xyz"][on], "rgb": own["rgb"], "both": own["rgb"][on]})
            for name, rows in (("xyz", own["xyz"][on]), ("rgb", own["rgb"][on])):
                vectors[name].append(rows.mean(0))
        with torch.no_grad():
            local = [alignment_loss(run.heads["rgb"](one["both"]), run.heads["xyz"](one["xyz"])) for one in adapted]
            whole = {name: torch.stack(rows) for name, rows in vectors.items()}
            expected = 0.6 * float(torch.stack(local).mean())
            expected += 0.6 * float(alignment_loss(run.heads["rgb"](whole["rgb"]), run.heads["xyz"](whole["xyz"])))
        for name in ("xyz", "rgb"):
            for key, rows in ((name, [one[name] for one in adapted]), (f"g{name}", list(whole[name].split(1)))):
                distances = []
                for number, own in zip(drawn, rows, strict=True):
                    bank = banks.get((key, category[number]))
                    distances.append(torch.cdist(own, torch.cat(bank)[-30:]).amin(1) if bank else torch.zeros(len(own)))
                expected += float(torch.cat(distances).mean())
                for number, own in zip(drawn, rows, strict=True):
                    banks.setdefault((key, category[number]), []).append(own)
        assert value == pytest.approx(expected, rel=1e-4)


def _arguments(**changes) -> dict:
    arguments = {
        "batch": 2, "patches_per_image": 0, "queue_size": 30, "clc_weight": 0.6, "losses": ",".join(LOSSES),
        "compactness": "distance", "prototypes": "kmeans", "clusters": 4, "layer": "vanilla", "lr": 3e-4, "seed": 0,
        "images": 5, "xyz_dim": 6, "rgb_dim": 4, "steps": 6,
    }  # fmt: skip
    return {**arguments, **changes}


@pytest.mark.parametrize("left", LOSSES)
def test_each_loss_can_be_trained_alone(monkeypatch: pytest.MonkeyPatch, left: str) -> None:
    seen = plain_losses(monkeypatch, losses=(left,))
    assert len(seen) == 6
    assert (seen[0] == 0) == ("compactness" in left)
    assert all(value > 0 for value in seen[1:])


@pytest.mark.parametrize(("n_images", "batch"), [(1, 8), (3, 8), (5, 4)])
def test_no_step_holds_an_image_twice(monkeypatch: pytest.MonkeyPatch, n_images: int, batch: int) -> None:
    """Two copies of an image in a batch would be each other's negatives in the global alignment."""
    batches: list[list[int]] = []
    read = training.Training._read

    def noting(self, images):
        batches.append(images)
        return read(self, images)

    monkeypatch.setattr(training.Training, "_read", noting)
    train_adaptation(IMAGES[:n_images], **{**FAST, "batch": batch})
    drawn = [training.sample_order(n_images, step * batch, batch, 0) for step in range(6)]
    assert [set(images) for images in batches] == [set(images) for images in drawn]
    assert all(len(images) == len(set(images)) for images in batches)
    assert any(len(images) > len(set(images)) for images in drawn), "there were repetitions to leave out"


def test_training_aligns_the_modalities() -> None:
    """Features of one place that share a hidden cause: after training its partner is found, before it is not."""
    hidden = [draw(20, 3, seed=seed) for seed in range(12)]
    to_xyz, to_rgb = draw(3, 6, seed=90), draw(3, 4, seed=91)
    pairs = [(one @ to_xyz, one @ to_rgb) for one in hidden]
    arguments = _arguments(steps=150, lr=3e-3, losses="local_alignment", images=12, batch=4)
    run = training.Training(pairs, arguments, torch.device("cpu"))

    def found() -> float:
        run.model.eval()
        with torch.no_grad():
            adapted = run.adaptation({"xyz": pairs[0][0][None], "rgb": pairs[0][1][None]})
            similarity = run.heads["rgb"](adapted["rgb"][0]) @ run.heads["xyz"](adapted["xyz"][0]).T
        run.model.train()
        return float((similarity.argmax(1) == torch.arange(20)).float().mean())

    before = found()
    training.train(run.losses, {"model": run.model, **run.queues}, run.optimizer, kind="LSFA", caller="test",
                   arguments=arguments)  # fmt: skip
    assert before < 0.3
    assert found() > 0.7


def test_inputs_are_brought_to_unit_size_by_one_mean_and_std() -> None:
    pairs = [(xyz * 50, rgb) for xyz, rgb in IMAGES]
    adaptation = train_adaptation(pairs, **FAST)
    values = torch.cat([xyz[(xyz != 0).any(1)] for xyz, _ in pairs]).double()
    assert float(adaptation.adaptors["xyz"].mean) == pytest.approx(float(values.mean()), rel=1e-5)
    assert float(adaptation.adaptors["xyz"].std) == pytest.approx(float(values.std(correction=0)), rel=1e-5)


class Killed(Exception):
    pass


class Killing(list):
    left = 10**9

    def __getitem__(self, index):
        self.left -= 1
        if self.left == 0:
            raise Killed
        return super().__getitem__(index)


def test_a_resumed_training_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """Weights, dropout and the FIFO banks: a bank one row off would change the losses after it."""
    settings = {"steps": 12, "batch": 2, "queue_size": 37, "patches_per_image": 5, "save_every": 5}
    whole = train_adaptation(IMAGES, resume=tmp_path / "whole.pt", **settings)
    killing = Killing(IMAGES)
    killing.left = 1 + len(IMAGES) + 2 * 8
    with pytest.raises(Killed):
        train_adaptation(killing, resume=tmp_path / "broken.pt", **settings)
    assert torch.load(tmp_path / "broken.pt", weights_only=True)["step"] == 5
    resumed = train_adaptation(IMAGES, resume=tmp_path / "broken.pt", **settings)
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(FormatError, match="queue_size"):
        train_adaptation(IMAGES, resume=tmp_path / "broken.pt", **{**settings, "queue_size": 36})


@pytest.mark.parametrize("losses", [LOSSES, ("local_compactness",)])
def test_a_diverging_training_stops_and_names_the_step(losses: tuple[str, ...]) -> None:
    pairs = [image(seed) for seed in range(4)]
    pairs[1][1][3] = float("nan")
    with pytest.raises(MmadBankError, match=r"loss is nan at step [0-3] of 4"):
        train_adaptation(pairs, steps=4, batch=1, losses=losses)


def test_what_was_saved_is_read(tmp_path: Path) -> None:
    adaptation = train_adaptation(IMAGES, **FAST)
    adaptation.save(tmp_path / "adaptation.safetensors")
    again = FeatureAdaptation(6, 4).load_checkpoint(tmp_path / "adaptation.safetensors").eval()
    xyz, rgb = IMAGES[0]
    first, second = (one.adapt({"xyz": xyz[None], "rgb": rgb[None]}) for one in (adaptation, again))
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(FormatError, match="expected"):
        FeatureAdaptation(6, 8).load_checkpoint(tmp_path / "adaptation.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses": ()}, "losses"),
        ({"losses": ("rotation",)}, "losses"),
        ({"compactness": "l1"}, "compactness"),
        ({"prototypes": "median"}, "prototypes"),
        ({"layer": "three_layers"}, "layer"),
        ({"clc_weight": -1}, "clc_weight"),
        ({"queue_size": 0}, "queue_size"),
        ({"steps": 0}, "steps"),
        ({"lr": 0.0}, "lr"),
        ({"groups": [0, 1]}, "groups: expected a number for each of 5 images, found 2"),
        ({"groups": [0, 0, 0, 0, -1]}, "groups"),
    ],
)
def test_bad_arguments_are_named(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        train_adaptation(IMAGES, **{**FAST, **changes})


def test_images_that_do_not_fit_are_named() -> None:
    with pytest.raises(InputError, match=r"pairs\[0\]"):
        train_adaptation([(draw(5, 6), draw(4, 4))], **FAST)
    with pytest.raises(InputError, match=r"pairs\[0\].*not all zero"):
        train_adaptation([(torch.zeros(5, 6), draw(5, 4))], **FAST)
