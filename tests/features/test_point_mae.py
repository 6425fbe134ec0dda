"""Point-MAE against a plain rendering of the published modules, through a file in the published format."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from published_points import clouds, published_state, rendered

from mmad_bank.errors import FormatError, InputError
from mmad_bank.features import PointMAE


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return published_state()


@pytest.fixture(scope="module")
def checkpoint(state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the pre-training writes it: prefixes, a decoder and a mask token, an optimizer, a NumPy accuracy."""
    saved = {f"module.MAE_encoder.{name}": tensor for name, tensor in state.items()}
    saved |= {"module.mask_token": torch.zeros(1, 1, 384), "module.MAE_decoder.norm.weight": torch.ones(384)}
    path = tmp_path_factory.mktemp("point_mae") / "pretrain.pth"
    best = {"acc": np.float64(0.91)}
    torch.save({"base_model": saved, "optimizer": {"step": 3}, "epoch": 299, "best_metrics": best}, path)
    return path


@pytest.mark.parametrize("batch_norm", ["running", "batch"])
@pytest.mark.parametrize("layers", [(3, 7, 11), (1, 2, 3), (0,)])
def test_published_checkpoint_gives_the_published_modules_outputs(checkpoint, state, layers, batch_norm) -> None:
    net = PointMAE(20, 12, layers=layers, batch_norm=batch_norm).load_checkpoint(checkpoint)
    batch = clouds(150, 90)
    tokens, centers = net(batch)
    assert tokens.shape == (2, 20, 384 * len(layers)) == (2, 20, net.dim)
    for b, cloud in enumerate(batch):
        expected, center = rendered(cloud, state, 20, 12, layers, training=batch_norm == "batch")
        assert torch.equal(centers[b], center)
        assert (tokens[b] - expected).abs().max() < 2e-3


@pytest.mark.parametrize("batch_norm", ["running", "batch"])
def test_chunks_of_groups_change_nothing(checkpoint, state, monkeypatch, batch_norm) -> None:
    monkeypatch.setattr("mmad_bank.features.point_transformer._CHUNK", {"cpu": 30})
    (cloud,) = clouds(100)
    tokens, _ = PointMAE(9, 12, layers=(0,), batch_norm=batch_norm).load_checkpoint(checkpoint)([cloud])
    training = batch_norm == "batch"
    assert (tokens[0] - rendered(cloud, state, 9, 12, (0,), training=training)[0]).abs().max() < 2e-3


@pytest.mark.parametrize("scale", [1.0, 0.02, 1e-4])
def test_statistics_of_layers_are_those_of_their_outputs(state, scale: float) -> None:
    """A cloud in metres has groups of centimetres, whose variances come near the norm's epsilon."""
    encoder = PointMAE(2, 2, layers=(0,)).encoder
    own = {name.removeprefix("encoder."): one for name, one in state.items() if name.startswith("encoder.")}
    encoder.load_state_dict(own)
    encoder.requires_grad_(True)
    groups = scale * torch.randn(40, 16, 3, generator=torch.Generator().manual_seed(0))
    x = groups.double().transpose(1, 2)
    first, second = (copy.deepcopy(one).double().train() for one in (encoder.first_conv, encoder.second_conv))
    points = first(x)
    whole = points.amax(2, keepdim=True).expand_as(points)
    expected = second(torch.cat([whole, points], 1)).amax(2)
    tokens = encoder(groups, True)
    assert (tokens - expected).abs().max() < 1e-4 * expected.abs().max()
    if scale < 0.01:  # float32 hardly tells a group's points apart, nor which of them has the maximum
        return
    # Gradients go through the statistics too.
    into = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    (tokens * into).sum().backward()
    (expected * into).sum().backward()
    for ours, theirs in zip((encoder.first_conv, encoder.second_conv), (first, second), strict=True):
        for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert (one.grad - other.grad).abs().max() < 1e-2 * max(1.0, other.grad.abs().max()), name


@pytest.mark.parametrize("batch_norm", ["running", "batch"])
def test_a_cloud_has_the_same_tokens_in_any_batch(checkpoint, batch_norm) -> None:
    net = PointMAE(16, 8, layers=(1,), batch_norm=batch_norm).load_checkpoint(checkpoint)
    batch = clouds(70, 50, 60)
    together, _ = net(batch)
    padded = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=9.0)
    assert torch.allclose(net(padded, lengths=[70, 50, 60])[0], together, atol=1e-6)
    for cloud, tokens in zip(batch, together, strict=True):
        assert torch.allclose(net(cloud[None])[0][0], tokens, atol=1e-5)


def test_published_sampling_passes_over_points_near_the_origin(checkpoint) -> None:
    (cloud,) = clouds(60)
    cloud[5] = 0.01  # the farthest from the others by far
    assert (PointMAE(4, 8, layers=(0,))([cloud])[1][0] == 0.01).all(dim=1).any()
    assert not (PointMAE(4, 8, layers=(0,), skip_near_origin=True)([cloud])[1][0] == 0.01).all(dim=1).any()


def test_bfloat16_is_near_and_float32(checkpoint) -> None:
    batch = clouds(80)
    exact, _ = PointMAE(16, 8).load_checkpoint(checkpoint)(batch)
    half, _ = PointMAE(16, 8, compute_dtype="bfloat16").load_checkpoint(checkpoint)(batch)
    assert half.dtype == torch.float32
    assert 0 < float((half - exact).norm() / exact.norm()) < 0.05


def test_blocks_after_the_last_layer_are_neither_made_nor_needed(state, tmp_path: Path) -> None:
    dropped = ("blocks.blocks.4", "blocks.blocks.9")
    short = {name: tensor for name, tensor in state.items() if not name.startswith(dropped)}
    torch.save({"base_model": short}, tmp_path / "short.pth")
    net = PointMAE(layers=(1, 2, 3)).load_checkpoint(tmp_path / "short.pth")
    assert {name.split(".")[2] for name in net.state_dict() if name.startswith("blocks")} == {"0", "1", "2", "3"}
    with pytest.raises(FormatError, match=r"missing: blocks\.blocks\.4\.norm1\.weight"):
        PointMAE().load_checkpoint(tmp_path / "short.pth")


def test_stays_frozen_and_in_evaluation_mode() -> None:
    net = PointMAE(4, 4, layers=(0,)).train()
    assert not net.training
    assert not any(module.training for module in net.modules())
    assert not any(parameter.requires_grad for parameter in net.parameters())


def save_without_key(path: Path, state: dict) -> None:
    torch.save({"model": state, "epoch": 1}, path)


def save_other_architecture(path: Path, state: dict) -> None:
    torch.save({"base_model": {"group_divider.weight": torch.zeros(1), "head.bias": torch.zeros(1)}}, path)


def save_other_width(path: Path, state: dict) -> None:
    torch.save({"base_model": state | {"pos_embed.2.weight": torch.zeros(192, 128)}}, path)


def save_truncated(path: Path, state: dict) -> None:
    torch.save({"base_model": state}, path)
    path.write_bytes(path.read_bytes()[:5000])


def save_code(path: Path, state: dict) -> None:
    torch.save({"base_model": state, "hook": Path("x")}, path)


def save_text(path: Path, state: dict) -> None:
    path.write_text("not a checkpoint")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (save_without_key, "expected a checkpoint with the key 'base_model', found model, epoch"),
        (save_other_architecture, "another architecture than PointMAE: it holds group_divider.weight, head.bias"),
        (save_other_width, r"expected pos_embed.2.weight of shape \(384, 128\).* found \(192, 128\)"),
        (save_truncated, "not a PyTorch checkpoint, or a truncated one"),
        (save_code, "holds more than tensors"),
        (save_text, "no checkpoint"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, state, write, message: str) -> None:
    path = tmp_path / "file.pth"
    write(path, state)
    net = PointMAE(4, 4, layers=(0,))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(FormatError, match=message) as caught:
        net.load_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PointMAE(20, 4, layers=(0,))(torch.rand(1, 19, 3)), r"points\[0\]: expected at least 20 .*num_groups"),
        (lambda: PointMAE(4, 20, layers=(0,))(clouds(30, 19)), r"points\[1\]: expected at least 20 .*group_size"),
        (lambda: PointMAE(2, 2, layers=(0,))(torch.full((1, 5, 3), torch.nan)), "NaN"),
        (lambda: PointMAE(2, 2, layers=(0,))([]), "at least one cloud"),
        (lambda: PointMAE(2, 2, layers=(0,))(torch.rand(5, 3)), "points: expected 3-D"),
        (lambda: PointMAE(2, 2, layers=(0,))(torch.rand(2, 5, 3), lengths=[5]), "lengths: expected 2"),
        (lambda: PointMAE(layers=(3, 12)), "layers"),
        (lambda: PointMAE(layers=(7, 3)), "layers"),
        (lambda: PointMAE(0), "num_groups"),
        (lambda: PointMAE(batch_norm="own"), "batch_norm"),
        (lambda: PointMAE(compute_dtype="half"), "compute_dtype"),
        (lambda: PointMAE(layers=(0,)).load_checkpoint("nowhere.pth"), "nowhere.pth: no such"),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
