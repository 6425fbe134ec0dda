"""UFF against a few lines of NumPy, and its training's promises."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mmad_bank._internal.training import sample_order
from mmad_bank.errors import FormatError, InputError, MmadBankError
from mmad_bank.fusion import FeatureFusion, train_fusion, training, uff

special = pytest.importorskip("scipy.special")


def published_state(xyz_dim: int, rgb_dim: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    state = {}
    for name, dim in (("xyz", xyz_dim), ("rgb", rgb_dim)):
        for layer, shape in (
            (f"{name}_norm", (dim,)), (f"{name}_mlp.fc1", (4 * dim, dim)), (f"{name}_mlp.fc2", (dim, 4 * dim)),
            (f"{name}_head", (256, dim)),
        ):  # fmt: skip
            state[f"{layer}.weight"] = torch.randn(*shape, generator=generator) * shape[-1] ** -0.5
            state[f"{layer}.bias"] = torch.randn(shape[0], generator=generator) * 0.1
    return state


def project(x: np.ndarray, state: dict, name: str) -> np.ndarray:
    """LayerNorm, then a perceptron with exact GELU, in float64."""
    w = {key: value.double().numpy() for key, value in state.items()}
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    x = x * w[f"{name}_norm.weight"] + w[f"{name}_norm.bias"]
    x = x @ w[f"{name}_mlp.fc1.weight"].T + w[f"{name}_mlp.fc1.bias"]
    x = x * 0.5 * (1 + special.erf(x / math.sqrt(2)))
    return x @ w[f"{name}_mlp.fc2.weight"].T + w[f"{name}_mlp.fc2.bias"]


def contrast(xyz: np.ndarray, rgb: np.ndarray, state: dict) -> float:
    """Mean over patches of -log softmax, RGB patches as rows, of cosine similarities."""
    heads = []
    for name, x in (("rgb", rgb), ("xyz", xyz)):
        head = project(x, state, name) @ state[f"{name}_head.weight"].double().numpy().T
        head = head + state[f"{name}_head.bias"].double().numpy()
        heads.append(head / np.linalg.norm(head, axis=1, keepdims=True))
    similarity = heads[0] @ heads[1].T
    return float(np.mean(special.logsumexp(similarity, axis=1) - np.diag(similarity)))


def features(*shape: int, xyz_dim: int = 24, rgb_dim: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    return torch.randn(*shape, xyz_dim, generator=generator), torch.randn(*shape, rgb_dim, generator=generator)


@pytest.fixture
def loaded(tmp_path: Path) -> tuple[FeatureFusion, dict]:
    state = published_state(24, 16)
    torch.save({"model": state, "optimizer": {}, "epoch": 2, "args": {"lr": 0.003}}, tmp_path / "uff.pth")
    return FeatureFusion(24, 16).load_checkpoint(tmp_path / "uff.pth"), state


def test_published_checkpoint_fuses_as_numpy_does(loaded) -> None:
    net, state = loaded
    xyz, rgb = features(3, 5)
    fused = net.fuse(xyz, rgb)
    assert fused.shape == (3, 5, 40) == (3, 5, net.dim)
    assert np.allclose(fused[..., :24], project(xyz.double().numpy(), state, "xyz"), atol=1e-5)
    assert np.allclose(fused[..., 24:], project(rgb.double().numpy(), state, "rgb"), atol=1e-5)
    assert not fused.requires_grad


def test_bfloat16_products_give_float32_features_close_by(loaded) -> None:
    net, _ = loaded
    xyz, rgb = features(3, 5)
    exact, low = net.fuse(xyz, rgb), net.fuse(xyz, rgb, compute_dtype="bfloat16")
    assert low.dtype == torch.float32
    assert not torch.equal(low, exact)
    assert (low - exact).norm() < 0.02 * exact.norm()


def test_papers_sizes_are_the_default() -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in FeatureFusion().state_dict().items()}
    assert shapes["xyz_mlp.fc1.weight"] == (4608, 1152)
    assert shapes["rgb_mlp.fc2.weight"] == (768, 3072)
    assert shapes["rgb_head.weight"] == (256, 768)
    assert shapes["xyz_head.bias"] == (256,)
    assert len(shapes) == 16


@pytest.mark.parametrize("block", [2, 7, 2048])
def test_loss_is_numpys_and_leaves_empty_patches_out(loaded, monkeypatch, block: int) -> None:
    monkeypatch.setattr(uff, "_BLOCK", block)
    net, state = loaded
    xyz, rgb = features(2, 6)
    xyz[0, 2] = xyz[1, 5] = 0
    xyz[0, 0, 3] = 0  # one zero does not make a patch empty
    kept = (xyz != 0).any(-1)
    expected = contrast(xyz[kept].double().numpy(), rgb[kept].double().numpy(), state)
    loss = net.loss(xyz, rgb)
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    net.double_loss = True
    assert net.loss(xyz, rgb).item() == pytest.approx(2 * expected, abs=1e-5)
    with torch.no_grad():
        assert net.loss(xyz, rgb).item() == pytest.approx(2 * expected, abs=1e-5)


def test_gradients_in_blocks_are_those_of_the_whole(loaded, monkeypatch) -> None:
    net, _ = loaded
    xyz, rgb = features(20)
    gradients = []
    for block in (3, 2048):
        monkeypatch.setattr(uff, "_BLOCK", block)
        net.zero_grad()
        net.loss(xyz, rgb).backward()
        gradients.append([parameter.grad.clone() for parameter in net.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))
    assert all(bool(gradient.any()) for gradient in gradients[0])


def test_loss_of_empty_patches_alone_is_zero(loaded) -> None:
    loss = loaded[0].loss(torch.zeros(4, 24), torch.randn(4, 16))
    assert loss.item() == 0.0
    loss.backward()


@pytest.mark.parametrize("name", ["uff.pth", "uff.safetensors"])
def test_saved_weights_come_back(tmp_path: Path, name: str) -> None:
    net = FeatureFusion(24, 16)
    net.save(tmp_path / name)
    other = FeatureFusion(24, 16).load_checkpoint(tmp_path / name)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_checkpoints_for_other_dimensions_are_refused(tmp_path: Path) -> None:
    FeatureFusion(24, 16).save(tmp_path / "uff.pth")
    with pytest.raises(FormatError, match=r"uff.pth: expected rgb_norm.weight of shape \(8,\).*found \(16,\)"):
        FeatureFusion(24, 8).load_checkpoint(tmp_path / "uff.pth")


def related_images(n: int, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Both modalities are linear views of the same hidden patch, with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    to_xyz, to_rgb = torch.randn(6, 24, generator=generator), torch.randn(6, 16, generator=generator)
    hidden = [torch.randn(30, 6, generator=generator) for _ in range(n)]
    return [(h @ to_xyz, h @ to_rgb + 0.05 * torch.randn(30, 16, generator=generator)) for h in hidden]


def test_training_learns_which_patches_belong_together() -> None:
    seen = related_images(12)
    unseen = related_images(14)[12:]
    first = train_fusion(seen, steps=1, warmup=1, batch=4, images_per_loss=2)
    trained = train_fusion(seen, steps=80, warmup=20, batch=4, images_per_loss=2)

    def right(net: FeatureFusion) -> float:
        with torch.no_grad():
            hits = []
            for xyz, rgb in unseen:
                keys = torch.nn.functional.normalize(net.xyz_head(net.fuse(xyz, rgb)[:, :24]), dim=1)
                queries = torch.nn.functional.normalize(net.rgb_head(net.fuse(xyz, rgb)[:, 24:]), dim=1)
                hits.append(((queries @ keys.T).argmax(1) == torch.arange(30)).float().mean())
        return float(torch.stack(hits).mean())

    assert right(first) < 0.3
    assert right(trained) > 0.7


class Noting(list):
    """Images that note in which order they are looked up, from the first contrast on."""

    looked_up: list[int]

    def __getitem__(self, index):
        self.looked_up.append(index)
        return super().__getitem__(index)


def contrast_sets(monkeypatch, n_images: int, **arguments) -> list[tuple[list[int], float]]:
    """Return the images of each loss of a training, and its share in the gradient of its step."""
    images, sets = Noting(related_images(n_images)), []
    images.looked_up = []
    original = training._Training.losses

    def noting(self, step):
        images.looked_up.clear()
        self.network.loss = lambda *patches: weightless * patches[0].new_ones(())
        for loss in original(self, step):
            sets.append((list(images.looked_up), loss.item()))
            images.looked_up.clear()
            yield loss

    weightless = torch.ones((), requires_grad=True)
    monkeypatch.setattr(training._Training, "losses", noting)
    train_fusion(images, warmup=0, **arguments)
    return sets


@pytest.mark.parametrize("patches", [None, 8])
@pytest.mark.parametrize(("n_images", "batch", "per_loss"), [(1, 4, 4), (3, 8, 4), (5, 32, 4), (7, 12, 4), (6, 5, 9)])
def test_no_contrast_set_holds_an_image_twice(monkeypatch, n_images, batch, per_loss, patches) -> None:
    arguments = {"batch": batch, "images_per_loss": per_loss, "patches_per_image": patches, "seed": 2}
    for step in range(4):
        sets = contrast_sets(monkeypatch, n_images, steps=step + 1, **arguments)
        monkeypatch.undo()
        own, share = [], 0.0
        while round(share, 6) < 1:
            own.append(sets.pop())
            share += own[-1][1]
        assert all(len(set(part)) == len(part) <= per_loss for part, _ in own)
        weights = dict.fromkeys(range(n_images), 0.0)
        for part, weight in own:
            for image in part:
                weights[image] += weight / len(part)
        drawn = sample_order(n_images, step * batch, batch, 2)
        expected = {image: pytest.approx(drawn.count(image) / batch) for image in range(n_images)}
        assert weights == expected, "every image weighs as often as it was drawn"
        if patches is None and n_images <= per_loss:
            assert len(own) <= 2, "a set that comes again is computed once"


def test_without_repetitions_the_sets_are_the_batch_in_its_order(monkeypatch) -> None:
    sets = contrast_sets(monkeypatch, 12, steps=3, batch=4, images_per_loss=3, seed=1)
    order = sample_order(12, 0, 12, 1)
    assert [part for part, _ in sets] == [order[:3], order[3:4], order[4:7], order[7:8], order[8:11], order[11:]]
    assert [weight for _, weight in sets] == [0.75, 0.25] * 3


class Interrupted(Exception):
    pass


def test_interrupted_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    images = related_images(5)
    arguments = {"steps": 9, "warmup": 3, "batch": 4, "images_per_loss": 3, "patches_per_image": 8, "seed": 3}
    whole = train_fusion(images, **arguments)

    class Breaking(list):
        reads = 0

        def __getitem__(self, index):
            Breaking.reads += 1
            if Breaking.reads > 27:  # in the seventh step
                raise Interrupted
            return super().__getitem__(index)

    file = tmp_path / "state.pt"
    with pytest.raises(Interrupted):
        train_fusion(Breaking(images), **arguments, resume=file, save_every=2)
    assert torch.load(file, weights_only=True)["step"] == 6
    resumed = train_fusion(images, **arguments, resume=file, save_every=2)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert torch.load(file, weights_only=True)["step"] == 9
    finished = train_fusion(images, **arguments, resume=file)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), finished.parameters(), strict=True))
    assert not finished.training
    with pytest.raises(FormatError, match=r"a training with lr 0\.003, now asked for 0\.01"):
        train_fusion(images, **arguments, lr=0.01, resume=file)


def test_training_does_not_touch_the_global_generator() -> None:
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    train_fusion(related_images(2), steps=1, warmup=0, batch=2)
    assert torch.equal(torch.rand(3), expected)


def test_nan_stops_training_and_names_the_step() -> None:
    images = related_images(4)
    for xyz, _ in images:
        xyz[0, 0] = torch.nan
    with pytest.raises(MmadBankError, match="the loss is nan at step 0 of 3"):
        train_fusion(images, steps=3, warmup=1, batch=2)


def foreign_state(tmp_path: Path) -> Path:
    torch.save({"model": {}}, tmp_path / "other.pt")
    return tmp_path / "other.pt"


def text_file(tmp_path: Path) -> Path:
    (tmp_path / "text.pt").write_text("x")
    return tmp_path / "text.pt"


@pytest.mark.parametrize("make", [foreign_state, text_file])
def test_foreign_training_states_are_refused_and_kept(tmp_path: Path, make) -> None:
    path = make(tmp_path)
    before = path.read_bytes()
    with pytest.raises(FormatError, match="not the state of a UFF training"):
        train_fusion(related_images(1), steps=1, warmup=0, batch=1, resume=path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FeatureFusion(0), "xyz_dim"),
        (lambda: FeatureFusion(4, 3).fuse(torch.ones(2, 3), torch.ones(2, 3)), r"xyz: expected \(..., 4\)"),
        (lambda: FeatureFusion(4, 3).loss(torch.ones(2, 4), torch.ones(3, 3)), "rgb: expected the patches of xyz"),
        (lambda: FeatureFusion(4, 3).save("nowhere/uff.pth"), "nowhere/uff.pth: cannot be written"),
        (lambda: train_fusion([]), "pairs"),
        (lambda: train_fusion(related_images(1), steps=2, warmup=3), "warmup"),
        (lambda: train_fusion(related_images(1), lr=0.0), "lr"),
        (lambda: train_fusion([(torch.ones(4, 2), torch.ones(3, 2))], steps=1, warmup=0), r"pairs\[0\]"),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
