"""Point-BERT against a plain rendering of the published modules, through a file in the published format."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from published_points import clouds, published_state, rendered

from mmad_bank.errors import FormatError, InputError
from mmad_bank.features import PointBERT, PointMAE, make_xyz_extractor


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return published_state(width=256)


@pytest.fixture(scope="module")
def checkpoint(state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the pre-training writes it: a second transformer with other weights, a tokenizer, heads, a queue."""
    saved = {f"module.transformer_q.{name}": tensor for name, tensor in state.items()}
    saved |= {f"module.transformer_k.{name}": tensor + 1 for name, tensor in state.items()}
    saved |= {f"module.dvae.{name}": tensor + 2 for name, tensor in state.items() if name.startswith("encoder.")}
    saved |= {"module.transformer_q.cls_head.0.weight": torch.zeros(512, 384), "module.queue": torch.zeros(512, 4)}
    path = tmp_path_factory.mktemp("point_bert") / "Point-BERT.pth"
    torch.save({"base_model": saved, "epoch": 300}, path)
    return path


@pytest.mark.parametrize("batch_norm", ["running", "batch"])
@pytest.mark.parametrize("layers", [(3, 7, 11), (0,)])
def test_published_checkpoint_gives_the_published_modules_outputs(checkpoint, state, layers, batch_norm) -> None:
    net = PointBERT(20, 12, layers=layers, batch_norm=batch_norm).load_checkpoint(checkpoint)
    batch = clouds(150, 90)
    tokens, centers = net(batch)
    assert tokens.shape == (2, 20, 384 * len(layers)) == (2, 20, net.dim)
    for b, cloud in enumerate(batch):
        expected, center = rendered(cloud, state, 20, 12, layers, training=batch_norm == "batch")
        assert torch.equal(centers[b], center)
        assert (tokens[b] - expected).abs().max() < 2e-3


def test_the_class_token_matters_and_is_left_out(checkpoint) -> None:
    net = PointBERT(10, 8, layers=(1,)).load_checkpoint(checkpoint)
    batch = clouds(60)
    before, _ = net(batch)
    net.cls_token.data.add_(torch.randn(384, generator=torch.Generator().manual_seed(0)))
    after, _ = net(batch)
    assert before.shape == after.shape == (1, 10, 384)
    assert (before - after).abs().max() > 1e-3


def test_it_is_had_by_its_name(checkpoint) -> None:
    torch.manual_seed(0)
    patches = make_xyz_extractor("point_bert", str(checkpoint), num_groups=12, group_size=8, grid=(4, 4), image_size=16)
    assert isinstance(patches.network, PointBERT)
    assert patches.name.startswith("point_bert 12x8 layers 3,7,11")
    assert patches(torch.rand(1, 3, 16, 16) + 0.1).shape == (1, 16, 1152)
    with pytest.raises(InputError, match=r"xyz_weights: .* of Point-BERT's .*Point-BERT\.pth from https:"):
        make_xyz_extractor("point_bert")


def test_the_other_networks_checkpoint_is_refused(checkpoint, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="another architecture than PointMAE"):
        PointMAE(4, 4).load_checkpoint(checkpoint)
    mae = {f"module.MAE_encoder.{name}": tensor for name, tensor in published_state().items()}
    torch.save({"base_model": mae}, tmp_path / "pretrain.pth")
    with pytest.raises(FormatError, match="another architecture than PointBERT"):
        PointBERT(4, 4).load_checkpoint(tmp_path / "pretrain.pth")
