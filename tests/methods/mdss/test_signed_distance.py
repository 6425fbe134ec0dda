"""Patches, implicit function and pulling loss against a few lines of NumPy or numeric differences."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch

from mmad_bank._internal.training import generator_at
from mmad_bank.errors import FormatError, InputError, MmadBankError
from mmad_bank.methods.mdss.point_patches import cut_patches
from mmad_bank.methods.mdss.pulling import draw_queries, pulling_loss, train_on_patches, train_signed_distance
from mmad_bank.methods.mdss.signed_distance import FixedFunction, PointEncoder, SignedDistance


def surface(n: int, seed: int = 0) -> torch.Tensor:
    """Points of a wavy sheet of 10 cm, half a metre away."""
    xy = torch.rand(n, 2, generator=torch.Generator().manual_seed(seed)) * 0.1
    z = 0.5 + 0.003 * torch.sin(60 * xy[:, 0]) * torch.cos(60 * xy[:, 1])
    return torch.cat([xy, z[:, None]], dim=1)


@pytest.mark.parametrize(("n", "size", "coverage"), [(3000, 500, 5.0), (700, 500, 1.0), (501, 500, 0.1), (400, 7, 1.0)])
def test_patches_are_nearest_points_and_hold_every_point(n: int, size: int, coverage: float) -> None:
    cloud = surface(n)
    cut = cut_patches(cloud, size=size, coverage=coverage)
    assert cut.count == size
    assert cut.points.shape == (*cut.rows.shape, 3) == (len(cut.rows), size, 3)
    assert len(cut.rows) >= max(1, round(coverage * n / size))
    assert torch.equal(cut.rows.unique(), torch.arange(n))
    points = cloud.double().numpy()
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    balls = {frozenset(np.argsort(row)[:size].tolist()) for row in distances}
    assert all(frozenset(rows.tolist()) in balls for rows in cut.rows)


def test_sampled_centres_are_the_farthest_points() -> None:
    line = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [10, 0, 0]])
    cut = cut_patches(line, size=2, coverage=1.0)  # two samples: points 0 and 3; nothing is left
    assert [sorted(rows) for rows in cut.rows.tolist()] == [[0, 1], [2, 3]]
    cut = cut_patches(line, size=2, coverage=0.5)  # one: the first that is left is point 2, then point 3
    assert [sorted(rows) for rows in cut.rows.tolist()] == [[0, 1], [1, 2], [2, 3]]


def wheel() -> torch.Tensor:
    """A hundred points of a circle, all of which are farther apart than those of the dense hub."""
    angles = torch.arange(100) * 2 * np.pi / 100
    rim = torch.stack([angles.cos(), angles.sin(), torch.zeros(100)], dim=1)
    return torch.cat([rim, 0.001 * torch.rand(500, 3, generator=torch.Generator().manual_seed(0))])


@pytest.mark.parametrize(
    ("cloud", "size"),
    [
        (surface(900), 100),
        (surface(400), 7),
        (surface(130), 100),
        (surface(101), 100),
        (surface(90), 100),
        (wheel(), 60),
    ],
)
def test_without_a_number_the_fewest_farthest_points_hold_every_point(cloud: torch.Tensor, size: int) -> None:
    points = cloud.double().numpy()
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    sampled, patches = [0], []
    while True:
        patches.append(frozenset(np.argsort(distances[sampled[-1]])[:size].tolist()))
        if len(frozenset().union(*patches)) == len(cloud):
            break
        sampled.append(int(distances[sampled].min(0).argmax()))
    cut = cut_patches(cloud, size=size)
    assert [frozenset(rows[: cut.count].tolist()) for rows in cut.rows] == patches
    assert (len(patches) > 8 * len(cloud) / size) == (len(cloud) == 600)  # the wheel takes many


def test_patches_are_centred_and_of_extent_one() -> None:
    cloud = surface(2000)
    cut = cut_patches(cloud, size=300)
    for patch, rows in zip(cut.points, cut.rows, strict=True):
        own = cloud[rows].double().numpy()
        extent = (own.max(0) - own.min(0)).max()
        assert np.allclose(patch, (own - own.mean(0)) / extent, atol=1e-6)
    assert torch.allclose(cut.points.mean(1), torch.zeros(3), atol=1e-6)
    assert torch.allclose((cut.points.amax(1) - cut.points.amin(1)).amax(1), torch.ones(len(cut.points)), atol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 51, 499])
def test_a_small_cloud_is_one_patch_of_repeated_points(n: int) -> None:
    cloud = surface(n)
    cut = cut_patches(cloud)
    assert (cut.rows.shape, cut.count) == ((1, 500), n)
    assert sorted(cut.rows[0, :n].tolist()) == list(range(n))
    assert torch.equal(cut.rows[0], cut.rows[0, torch.arange(500) % n])
    centred = (cloud - cloud.double().mean(0)).abs().amax()
    assert cut.points.abs().amax() <= 1.0
    assert (cut.points.abs().amax() > 0) == (centred > 0)
    scores = SignedDistance(width=8).eval().score(cloud)
    assert scores.shape == (n,)
    assert torch.isfinite(scores).all()


def test_duplicates_are_covered_too() -> None:
    cloud = torch.cat([torch.zeros(40, 3), surface(20)])
    for coverage in (1.0, None):
        cut = cut_patches(cloud, size=10, coverage=coverage)
        assert torch.equal(cut.rows.unique(), torch.arange(60))
        assert torch.isfinite(cut.points).all()


def numpy_distance(net: SignedDistance, queries: np.ndarray, patch: np.ndarray) -> np.ndarray:
    """One patch (K, 3) and its queries (Q, 3), with running statistics, in float64."""
    w = {name: tensor.double().numpy() for name, tensor in net.state_dict().items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        mean, var = w[f"encoder.{name}.running_mean"], w[f"encoder.{name}.running_var"]
        return (x - mean) / np.sqrt(var + 1e-5) * w[f"encoder.{name}.weight"] + w[f"encoder.{name}.bias"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ np.squeeze(w[f"{name}.weight"]).reshape(w[f"{name}.bias"].size, -1).T + w[f"{name}.bias"]

    x = patch
    for i in (1, 2, 3):
        x = np.maximum(norm(linear(x, f"encoder.conv{i}"), f"bn{i}"), 0)
    x = x.max(0)
    for i in (1, 2):
        x = np.maximum(norm(linear(x, f"encoder.fc{i}"), f"bn{i + 3}"), 0)
    code = np.maximum(linear(x, "implicit.code"), 0)
    x = np.maximum(linear(queries, "implicit.point"), 0)
    x = np.maximum(linear(np.concatenate([x, np.tile(code, (len(x), 1))], axis=1), "implicit.joint"), 0)
    for i in range(7):
        layer = f"implicit.hidden.{i}"
        g, v = (w[f"{layer}.parametrizations.weight.original{j}"] for j in (0, 1))
        weight = g * v / np.linalg.norm(v, axis=1, keepdims=True)
        x = np.maximum(x @ weight.T + w[f"{layer}.bias"], 0)
    return linear(x, "implicit.out")[:, 0]


@pytest.fixture(scope="module")
def trained() -> tuple[SignedDistance, torch.Tensor]:
    patches = cut_patches(surface(900), size=64).points
    return train_on_patches(patches, width=32, steps=200, batch=8, queries=16, lr=4e-3), patches


def test_distances_and_pulls_are_numpys(trained) -> None:
    net, patches = trained
    queries = patches[:2] + 0.1 * torch.randn(2, 64, 3, generator=torch.Generator().manual_seed(1))
    found = net(queries, patches[:2]).detach().numpy()
    pulled = net.pull(queries, patches[:2]).detach().numpy()
    for b in range(2):
        q, patch = queries[b].double().numpy(), patches[b].double().numpy()
        distance = numpy_distance(net, q, patch)
        assert np.allclose(found[b], distance, atol=1e-5)
        steps = 1e-6 * np.eye(3)
        gradient = np.stack(
            [(numpy_distance(net, q + e, patch) - numpy_distance(net, q - e, patch)) / 2e-6 for e in steps], axis=1
        )
        expected = q - distance[:, None] * gradient / np.linalg.norm(gradient, axis=1, keepdims=True)
        close = np.isclose(pulled[b], expected, atol=1e-3).all(axis=1)
        assert close.mean() > 0.95  # a step may cross one of the function's creases


def test_the_encoders_training_is_that_of_pytorchs_layers() -> None:
    torch.manual_seed(3)
    encoder, patches, weights = PointEncoder().train(), torch.rand(5, 40, 3), torch.randn(5, 128)
    with torch.no_grad():
        for norm in (encoder.bn3, encoder.bn4):  # of either sign
            norm.weight.normal_()
            norm.bias.normal_()
    plain = deepcopy(encoder)
    x = patches.transpose(1, 2)
    for conv, norm in ((plain.conv1, plain.bn1), (plain.conv2, plain.bn2), (plain.conv3, plain.bn3)):
        x = torch.relu(norm(conv(x)))
    x = torch.relu(plain.bn4(plain.fc1(x.amax(2))))
    expected = torch.relu(plain.bn5(plain.fc2(x)))
    codes = encoder(patches)
    torch.testing.assert_close(codes, expected, rtol=1e-4, atol=1e-4)
    for one in (codes, expected):
        (one * weights).sum().backward()
    for (name, own), other in zip(encoder.named_parameters(), plain.parameters(), strict=True):
        if name in ("conv1.bias", "conv2.bias", "conv3.bias", "fc1.bias", "fc2.bias"):
            continue  # a norm follows, which takes them away: their gradients are rounding errors of zero, or none
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-3, atol=1e-3 * float(other.grad.abs().max()))
    for (name, own), other in zip(encoder.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-6, msg=name)


def test_the_loss_is_the_mean_unsquared_distance_and_reaches_all_weights(trained) -> None:
    net, patches = trained
    queries, targets = draw_queries(patches[:4], torch.full((4,), 64), 20, torch.Generator().manual_seed(0))
    net.zero_grad()
    loss = pulling_loss(net, patches[:4], queries, targets)
    expected = np.linalg.norm((net.pull(queries, patches[:4]) - targets).detach().double().numpy(), axis=2).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
    dead = [name for name, gradient in gradients.items() if gradient is None or not gradient.any()]
    assert dead == []


def test_the_gradient_goes_through_the_gradient_inside_the_loss(trained) -> None:
    net, patches = deepcopy(trained[0]).double(), trained[1][:4].double()
    queries, targets = draw_queries(trained[1][:4], torch.full((4,), 64), 20, torch.Generator().manual_seed(0))
    queries, targets = queries.double(), targets.double()
    pulling_loss(net, patches, queries, targets).backward()
    for weight, place in ((net.implicit.point.weight, (3, 1)), (net.implicit.joint.weight, (0, 40))):
        values = []
        with torch.no_grad():
            before = weight[place].item()
            for delta in (1e-7, -1e-7):
                weight[place] = before + delta
                values.append(pulling_loss(net, patches, queries, targets).item())
            weight[place] = before
        assert (values[0] - values[1]) / 2e-7 == pytest.approx(weight.grad[place].item(), rel=1e-3, abs=1e-7)


def test_queries_are_scattered_by_the_distance_of_the_fiftieth_neighbour() -> None:
    patches = torch.stack([surface(400, seed=seed) * 10 for seed in range(60)])
    counts = torch.full((60,), 400)
    queries, targets = draw_queries(patches, counts, 400, torch.Generator().manual_seed(3))
    points, asked = patches.double().numpy(), queries.double().numpy()
    distances = np.linalg.norm(asked[:, :, None] - points[:, None], axis=3)
    nearest = distances.argmin(2)
    assert np.allclose(targets.numpy(), np.take_along_axis(points, nearest[..., None], axis=1))
    # Each patch's points are all drawn once, in another order: the same draw without noise gives the order.
    order = torch.rand(60, 400, generator=torch.Generator().manual_seed(3)).argsort(1).numpy()
    origins = np.take_along_axis(points, order[..., None], axis=1)
    own = np.sort(np.linalg.norm(origins[:, :, None] - points[:, None], axis=3), axis=2)
    deviations = [((asked - origins) / own[:, :, k, None]).std() for k in (49, 50, 51)]
    expected = np.sqrt(13 / 20 * 0.5**2 + 7 / 20 * 1.0**2)
    assert deviations[1] == pytest.approx(expected, rel=0.004)
    assert abs(deviations[0] / expected - 1) > 0.004  # the 49th and the 51st are another unit
    assert abs(deviations[2] / expected - 1) > 0.004
    scaled = (asked - origins) / own[:, :, 50, None]
    assert (np.abs(scaled) > 1.5).mean() == pytest.approx(0.65 * 0.0027 + 0.35 * 0.1336, rel=0.05)


def test_repeated_points_are_not_neighbours() -> None:
    cut = cut_patches(torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]), size=90)
    queries, _ = draw_queries(cut.points, torch.tensor([cut.count]), 90, torch.Generator().manual_seed(0))
    assert (queries - cut.points.mean(1)).std() > 0.3  # with the repetitions every sigma would be 0


@pytest.mark.parametrize("aggregation", ["min", "mean"])
def test_points_score_by_their_patches(trained, aggregation) -> None:
    net, _ = trained
    cloud = surface(500, seed=4)
    cut = cut_patches(cloud, size=64, coverage=3.0)
    own: list[list[float]] = [[] for _ in cloud]
    for patch, rows in zip(cut.points, cut.rows, strict=True):
        values = np.abs(numpy_distance(net, patch.double().numpy(), patch.double().numpy()))
        for row, value in zip(rows.tolist(), values, strict=True):
            own[row].append(value)
    expected = [min(values) if aggregation == "min" else np.mean(values) for values in own]
    scores = net.score(cloud, size=64, coverage=3.0, aggregation=aggregation)
    assert np.allclose(scores, expected, atol=1e-5)
    assert max(map(len, own)) > 1


def test_the_fixed_function_is_the_function(trained) -> None:
    net, patches = trained
    with torch.no_grad():
        codes, expected = net.encoder(patches), net(patches, patches)
        exact = FixedFunction(net.implicit)(patches, codes)
        rounded = FixedFunction(net.implicit, "bfloat16")(patches, codes)
    assert exact.dtype == rounded.dtype == torch.float32
    torch.testing.assert_close(exact, expected, rtol=1e-5, atol=1e-6)
    assert 0 < (rounded - expected).abs().max() < 0.02  # where the largest distances are 0.1
    assert (rounded - expected).abs().mean() < 0.004


def test_training_pulls_onto_unseen_surfaces_and_a_dent_stands_out(trained) -> None:
    net, patches = trained
    first = train_on_patches(patches, width=32, steps=1, batch=8, queries=16, lr=4e-3)
    normal = surface(900, seed=7)
    unseen = cut_patches(normal, size=64).points
    asked = draw_queries(unseen, torch.full((len(unseen),), 64), 64, torch.Generator().manual_seed(0))
    assert pulling_loss(net, unseen, *asked) < 0.6 * pulling_loss(first, unseen, *asked)
    dented = normal.clone()
    inside = (dented[:, :2] - 0.05).norm(dim=1) < 0.012
    dented[inside, 2] += 0.02 * torch.rand(int(inside.sum()), generator=torch.Generator().manual_seed(1))
    scores = net.score(dented, size=64)
    assert scores[inside].mean() > 2 * scores[~inside].mean()


class Interrupted(Exception):
    pass


class Breaking:
    """Patches of which the n-th look-up fails."""

    def __init__(self, patches: torch.Tensor, after: int) -> None:
        self.patches, self.left = patches, after
        self.ndim, self.shape = patches.ndim, patches.shape

    def __getitem__(self, rows: list[int]) -> torch.Tensor:
        self.left -= 1
        if self.left < 0:
            raise Interrupted
        return self.patches[rows]


def same(a: SignedDistance, b: SignedDistance) -> bool:
    states = a.state_dict(), b.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_killed_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    patches = cut_patches(surface(300), size=32).points
    options = {"width": 16, "steps": 7, "batch": 4, "queries": 8, "seed": 5}
    whole = train_on_patches(patches, **options)
    file = tmp_path / "state.pt"
    with pytest.raises(Interrupted):
        train_on_patches(Breaking(patches, 5), **options, resume=file, save_every=2)
    assert torch.load(file, weights_only=True)["step"] == 4
    resumed = train_on_patches(patches.numpy(), **options, resume=file, save_every=2)
    assert same(whole, resumed)  # the running statistics of batch normalisation too
    last = torch.load(file, weights_only=True)["optimizer"]["param_groups"][0]["lr"]
    assert last == pytest.approx(1e-4 * (1 + np.cos(np.pi * 6 / 7)) / 2)  # the last of seven steps
    with pytest.raises(FormatError, match="with width 16, now asked for 8"):
        train_on_patches(patches, **{**options, "width": 8}, resume=file)
    assert not same(whole, train_on_patches(patches, **{**options, "seed": 6}))


def test_clouds_of_several_categories_train_as_their_patches_do(tmp_path: Path) -> None:
    clouds = [surface(300, seed=1), 3 * surface(200, seed=2), surface(20, seed=3)]  # the last is smaller than a patch
    options = {"width": 8, "steps": 3, "batch": 4, "queries": 8, "seed": 2}
    cuts = [cut_patches(cloud, size=32, coverage=2.0) for cloud in clouds]
    patches = torch.cat([cut.points for cut in cuts])
    counts = torch.cat([torch.full((len(cut.points),), cut.count) for cut in cuts])
    net = train_signed_distance((cloud.numpy() for cloud in clouds), patch_size=32, coverage=2.0, **options)
    assert same(net, train_on_patches(patches, counts, **options))
    assert not same(net, train_signed_distance(clouds[:2], patch_size=32, coverage=2.0, **options))
    net.save(tmp_path / "sdf.safetensors")
    assert same(net, SignedDistance(8).load_checkpoint(tmp_path / "sdf.safetensors"))
    with pytest.raises(FormatError, match=r"sdf.safetensors: expected implicit.point.weight of shape \(16, 3\)"):
        SignedDistance(16).load_checkpoint(tmp_path / "sdf.safetensors")


def test_the_function_begins_as_a_sphere() -> None:
    torch.manual_seed(0)
    net = SignedDistance().eval()
    directions = torch.nn.functional.normalize(torch.randn(200, 3), dim=1)
    patch = cut_patches(surface(500)).points
    with torch.no_grad():
        near, far = (net(radius * directions[None], patch) for radius in (0.1, 5.0))
    assert net.implicit.out.bias.item() == -0.5
    assert net.implicit.out.weight.mean().item() == pytest.approx(2 * np.sqrt(np.pi) / np.sqrt(512), abs=1e-6)
    assert far.min() > near.max()


def test_nan_stops_the_training_and_names_the_step() -> None:
    patches = cut_patches(surface(300), size=32).points
    patches[:, 0, 0] = torch.nan
    with pytest.raises(MmadBankError, match="train_signed_distance: the loss is nan at step 0 of 4"):
        train_on_patches(patches, width=8, steps=4, batch=4)


def test_draws_differ_from_step_to_step() -> None:
    patches = cut_patches(surface(300), size=32).points[:2]
    counts = torch.tensor([32, 32])
    drawn = [draw_queries(patches, counts, 8, generator_at(0, 1, step))[0] for step in (0, 1, 0)]
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])


PATCHES = torch.rand(3, 20, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cut_patches(torch.rand(5, 2)), r"points: expected \(N, 3\)"),
        (lambda: cut_patches(torch.empty(0, 3)), "at least one point"),
        (lambda: cut_patches(torch.full((5, 3), torch.nan)), "points: row 0 holds NaN"),
        (lambda: cut_patches(torch.rand(5, 3), size=0), "size: expected 1 to"),
        (lambda: cut_patches(torch.rand(5, 3), coverage=0.0), "coverage: expected a positive"),
        (lambda: SignedDistance(0), "width: expected 1 to"),
        (lambda: SignedDistance(4).score(torch.rand(5, 3), aggregation="max"), "aggregation: expected one of min"),
        (lambda: train_on_patches(PATCHES, batch=1), "batch: expected 2 to"),
        (lambda: train_on_patches(PATCHES, queries=21), "queries: expected 1 to 20"),
        (lambda: train_on_patches(PATCHES, steps=0), "steps: expected 1 to"),
        (lambda: train_on_patches(PATCHES[0]), r"patches: expected \(P, K, 3\)"),
        (lambda: train_on_patches(PATCHES, lr=-1.0), "lr: expected"),
        (lambda: train_signed_distance([]), "clouds: expected at least one cloud, found none"),
        (lambda: train_signed_distance([PATCHES[0], torch.rand(5, 2)]), r"clouds\[1\]: expected \(N, 3\)"),
        (lambda: train_signed_distance([PATCHES[0]], patch_size=0), "patch_size: expected 1 to"),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
