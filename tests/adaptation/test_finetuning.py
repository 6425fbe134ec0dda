"""Fine-tuning by LSFA's losses: against plain definitions, by kinds, resumed, and with what does not fit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from mmad_bank.adaptation import train_networks
from mmad_bank.adaptation.finetuning import AdaLoRA, FineTuning, NetworkTraining, tune
from mmad_bank.adaptation.losses import alignment_loss
from mmad_bank.adaptation.training import sample_order
from mmad_bank.errors import FormatError, InputError, MissingExtraError
from mmad_bank.features import EfficientNetLite0, PointFeatureAlignment, PointMAE, PointPatches, RGBExtractor
from mmad_bank.features.point_alignment import Interpolation

pytest.importorskip("timm")
pytest.importorskip("peft")

FAST: dict[str, Any] = {"steps": 6, "batch": 2, "queue_size": 13, "rank": 2}


def a_network(model: str = "vit_tiny_patch16_224") -> RGBExtractor:
    """Two blocks of random weights, 2×2 patches."""
    torch.manual_seed(3)
    return RGBExtractor(model, image_size=32, layers=(1,))


def image(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    xyz = torch.randn(4, 6, generator=generator) * 40 + 3
    xyz[1] = 0
    return xyz, torch.rand(3, 32, 32, generator=generator)


IMAGES = [image(seed) for seed in range(5)]


def trained(kind: FineTuning, **changes: Any) -> RGBExtractor:
    network = a_network()
    train_networks(changes.pop("pairs", IMAGES), {"rgb": network}, finetune=kind, **{**FAST, **changes})
    return network


def changed(network: RGBExtractor) -> dict[str, torch.Tensor]:
    """What has been added to the weights that are not what they were."""
    before, after = a_network().state_dict(), network.state_dict()
    assert list(before) == list(after)
    return {name: after[name] - old for name, old in before.items() if not torch.equal(old, after[name])}


def ranks(differences: dict[str, torch.Tensor]) -> list[int]:
    """How many directions a matrix has that stand out of rounding."""
    values = [torch.linalg.svdvals(one.double()) for one in differences.values()]
    return [int((one > 1e-3 * one[0]).sum()) for one in values]


ATTENTION = {f"network.blocks.{i}.attn.{name}.weight" for i in range(2) for name in ("qkv", "proj")}


def test_the_last_blocks_or_all_weights_are_trained() -> None:
    names = set(a_network().state_dict())
    assert set(changed(trained("blocks"))) == {name for name in names if ".blocks.1." in name}
    assert set(changed(trained("blocks", blocks=2))) == {name for name in names if ".blocks." in name}
    assert set(changed(trained("all"))) == names
    assert not any(weight.requires_grad for weight in trained("all").parameters())


def test_lora_adds_a_product_of_its_rank_to_the_attention() -> None:
    for rank in (1, 3):
        differences = changed(trained("lora", rank=rank, lr=1e-2))
        assert set(differences) == ATTENTION
        assert ranks(differences) == [rank] * 4


def test_adalora_ends_with_the_average_rank_and_moves_it_between_layers() -> None:
    differences = changed(trained("adalora", rank=4, steps=40, lr=1e-2))
    assert set(differences) == ATTENTION
    assert 0 < sum(ranks(differences)) <= 4 * 4
    assert len(set(ranks(differences))) > 1


def test_adalora_asks_for_orthogonal_factors() -> None:
    """‖AAᵀ - I‖ and ‖BᵀB - I‖, averaged over the factors, times a half."""
    torch.manual_seed(0)
    network = a_network()
    tuning = tune(network, "adalora", rank=2, blocks=1, steps=4)
    assert isinstance(tuning, AdaLoRA)
    distances = []
    for name, weight in network.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            rows = weight.detach().double() if "lora_A" in name else weight.detach().double().T
            assert rows.shape[0] == 3  # one and a half times the rank
            distances.append(float((rows @ rows.T - torch.eye(3)).square().sum().sqrt()))
    assert len(distances) == 8
    assert float(tuning.penalty().detach()) == pytest.approx(0.5 * sum(distances) / 8, rel=1e-5)


def test_the_first_two_losses_are_equation_9() -> None:
    """With a rate of next to nothing: CLC of network and frozen features, IFC of the network's alone."""
    network, plain = a_network(), a_network()
    arguments = {
        "finetune": "blocks", "rank": 2, "blocks": 1, "steps": 2, "batch": 2, "patches_per_image": 0, "queue_size": 13,
        "clc_weight": 0.6, "losses": "local_alignment,global_alignment,local_compactness,global_compactness",
        "compactness": "distance", "prototypes": "mean", "clusters": 4, "lr": 1e-30, "seed": 0, "images": 5,
        "xyz_dim": 6, "rgb_dim": 192,
    }  # fmt: skip
    run = NetworkTraining(IMAGES, arguments, torch.device("cpu"), {"rgb": network})
    values = torch.cat([xyz[(xyz != 0).any(1)] for xyz, _ in IMAGES]).double()
    mean, std = float(values.mean()), float(values.std(correction=0))
    seen: list[torch.Tensor] = []
    whole: list[torch.Tensor] = []
    for step in range(2):
        drawn = sample_order(5, step * 2, 2, 0)
        features = [plain(IMAGES[number][1][None])[0] for number in drawn]
        points = [(IMAGES[number][0] - mean) / std for number in drawn]
        on = [(IMAGES[number][0] != 0).any(1) for number in drawn]
        vectors = [
            torch.stack([rows[o].mean(0) for rows, o in zip(one, on, strict=True)]) for one in (features, points)
        ]
        with torch.no_grad():
            rgb, xyz = run.heads["rgb"], run.heads["xyz"]
            local = [alignment_loss(rgb(f[o]), xyz(p[o])) for f, p, o in zip(features, points, on, strict=True)]
            expected = 0.6 * float(torch.stack(local).mean() + alignment_loss(rgb(vectors[0]), xyz(vectors[1])))
        if seen:
            expected += float(torch.cdist(torch.cat(features), torch.cat(seen)).min(1).values.mean())
            expected += float(torch.cdist(vectors[0], torch.stack(whole)).min(1).values.mean())
        (loss,) = [float(loss.detach()) for loss in run.losses(step)]
        assert loss == pytest.approx(expected, rel=1e-4)
        seen, whole = [*seen, *features], [*vectors[0]]
    assert set(run.queues) == {"local_rgb", "global_rgb"}


def test_the_loss_falls() -> None:
    """What is trained is what lowers the loss: alignment with the frozen features of the same place."""
    for kind in get_args(FineTuning):
        losses = noted(kind, 30)
        assert sum(losses[-5:]) < 0.9 * sum(losses[:5]), kind


def noted(kind: FineTuning, steps: int) -> list[float]:
    """The values of the losses of a training."""
    seen: list[float] = []
    original = NetworkTraining.losses

    def noting(self: NetworkTraining, step: int) -> Any:
        for loss in original(self, step):
            seen.append(float(loss.detach()))
            yield loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NetworkTraining, "losses", noting)
        trained(kind, steps=steps, lr=3e-3, losses=("local_alignment",))
    return seen


def test_both_networks_are_trained_together() -> None:
    """Point-MAE goes through its alignment, whose matrix is sparse with three neighbors."""
    generator = torch.Generator().manual_seed(0)
    pairs = [(torch.rand(3, 32, 32, generator=generator) + 0.1, IMAGES[i][1]) for i in range(3)]
    for interpolation in get_args(Interpolation):
        torch.manual_seed(1)
        alignment = PointFeatureAlignment((2, 2), (32, 32), interpolation=interpolation)
        network = PointPatches(PointMAE(6, 4, layers=(0, 1)), alignment)
        cloud = pairs[0][0][None]
        for weight in network.parameters():
            weight.requires_grad_(True)
        features, plain = network.features(cloud), network(cloud)
        torch.testing.assert_close(features.detach(), plain)
        assert (features.requires_grad, plain.requires_grad) == (True, False)
        features.square().sum().backward()
        for name, weight in network.named_parameters():
            shifted = name.endswith(("first_conv.0.bias", "second_conv.0.bias"))  # the groups' own means take it away
            assert bool((weight.grad != 0).any()) != shifted, name
        network.requires_grad_(False)
        rgb = a_network()
        train_networks(pairs, {"rgb": rgb, "xyz": network}, finetune="lora", **FAST)
        assert set(changed(rgb)) == ATTENTION
        assert (network(cloud) - plain).abs().max() > 1e-6


class Killed(Exception):
    pass


class Killing(list):
    left = 10**9

    def __getitem__(self, index: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise Killed
        return super().__getitem__(index)


@pytest.mark.parametrize("kind", get_args(FineTuning))
def test_a_resumed_training_ends_with_the_same_bytes(tmp_path: Path, kind: FineTuning) -> None:
    settings = {"steps": 12, "save_every": 5, "lr": 1e-2}
    whole = trained(kind, resume=tmp_path / "whole.pt", **settings)
    killing = Killing(IMAGES)
    killing.left = 1 + len(IMAGES) + 2 * 8
    with pytest.raises(Killed):
        trained(kind, pairs=killing, resume=tmp_path / "broken.pt", **settings)
    state = torch.load(tmp_path / "broken.pt", weights_only=True)
    assert state["step"] == 5
    if kind in ("lora", "adalora"):  # not the network's own weights
        assert sum(one.numel() for one in state["model"].values()) < 0.5 * sum(p.numel() for p in whole.parameters())
    again = trained(kind, resume=tmp_path / "broken.pt", **settings)
    for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(FormatError, match="rank"):
        trained(kind, resume=tmp_path / "broken.pt", **{**settings, "rank": 3})


def test_missing_peft_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"peft.*finetune"):
        trained("lora")
    trained("blocks")


def test_an_attention_that_does_not_call_its_layers_is_refused() -> None:
    network = a_network("beit_base_patch16_224")
    pairs = [(torch.randn(4, 6), torch.rand(3, 32, 32)) for _ in range(2)]
    with pytest.raises(InputError, match="expected 'blocks' or 'all'"):
        train_networks(pairs, {"rgb": network}, finetune="lora", **FAST)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: trained("every"), "finetune: expected"),
        (lambda: trained("lora", rank=0), "rank: expected"),
        (lambda: trained("lora", rank=2**16), "rank: expected 1 to [0-9]+ \\(no matrix of the attention"),
        (lambda: trained("blocks", blocks=3), "blocks: expected 1 to 2"),
        (lambda: trained("adalora", steps=1), "steps: expected at least 2"),
        (
            lambda: trained("blocks", pairs=[(torch.zeros(4, 6), IMAGES[0][1])]),
            r"pairs\[0\]: expected xyz \(P, xyz_dim",
        ),
        (lambda: trained("blocks", pairs=[IMAGES[0][::-1]]), r"pairs\[0\]: expected xyz"),
        (
            lambda: train_networks(IMAGES, {"rgb": EfficientNetLite0(pretrained=False)}, finetune="blocks"),
            "finetune: expected a network with transformer blocks, found efficientnet_lite0",
        ),
        (
            lambda: train_networks(IMAGES, {"rgb": RGBExtractor("mixer_s32_224")}, finetune="lora"),
            "finetune: expected a network with attention, found mixer_s32_224",
        ),
        (lambda: train_networks(IMAGES, {}, finetune="blocks"), "networks: expected xyz, rgb or both, found none"),
    ],
)
def test_bad_input_is_named(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
