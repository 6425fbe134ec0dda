"""The networks of point groups as published: weights under their names, and what they compute, in functions."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def published_state(depth: int = 12, width: int = 384) -> dict[str, torch.Tensor]:
    """Random weights under the published names, with norms and biases that matter."""
    generator = torch.Generator().manual_seed(5)
    state: dict[str, torch.Tensor] = {}

    def add(name: str, *shape: int, spread: float = 1.0, offset: float = 0.0) -> None:
        state[name] = offset + spread * torch.randn(*shape, generator=generator)

    def linear(name: str, n_out: int, n_in: int, *kernel: int, bias: bool = True) -> None:
        add(f"{name}.weight", n_out, n_in, *kernel, spread=n_in**-0.5)
        if bias:
            add(f"{name}.bias", n_out, spread=0.2)

    def norm(name: str, n: int, *, running: bool = False) -> None:
        add(f"{name}.weight", n, spread=0.2, offset=1.0)
        add(f"{name}.bias", n, spread=0.2)
        if running:
            add(f"{name}.running_mean", n, spread=0.3)
            state[f"{name}.running_var"] = torch.rand(n, generator=generator) + 0.3
            state[f"{name}.num_batches_tracked"] = torch.tensor(77)

    linear("encoder.first_conv.0", 128, 3, 1)
    norm("encoder.first_conv.1", 128, running=True)
    linear("encoder.first_conv.3", 256, 128, 1)
    linear("encoder.second_conv.0", 512, 512, 1)
    norm("encoder.second_conv.1", 512, running=True)
    linear("encoder.second_conv.3", width, 512, 1)
    linear("pos_embed.0", 128, 3)
    linear("pos_embed.2", 384, 128)
    for i in range(depth):
        block = f"blocks.blocks.{i}"
        norm(f"{block}.norm1", 384)
        linear(f"{block}.attn.qkv", 1152, 384, bias=False)
        linear(f"{block}.attn.proj", 384, 384)
        norm(f"{block}.norm2", 384)
        linear(f"{block}.mlp.fc1", 1536, 384)
        linear(f"{block}.mlp.fc2", 384, 1536)
    norm("norm", 384)
    if width != 384:  # Point-BERT's
        linear("reduce_dim", 384, width)
        add("cls_token", 1, 1, 384)
        add("cls_pos", 1, 1, 384)
    return state


def sampled_groups(cloud: torch.Tensor, n_groups: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Farthest point sampling from row 0, and k-NN by sorting."""
    points = cloud.double()
    picks, nearest = [0], torch.full((len(points),), torch.inf, dtype=torch.float64)
    for _ in range(n_groups - 1):
        nearest = torch.minimum(nearest, (points - points[picks[-1]]).square().sum(1))
        picks.append(int(nearest.argmax()))
    around = (points[picks][:, None] - points[None]).square().sum(-1).argsort(dim=1)[:, :size]
    return cloud[picks], cloud[around] - cloud[picks][:, None]


def rendered(cloud: torch.Tensor, state: dict, n_groups: int, size: int, layers: tuple, training: bool):
    """The network in functions, channels first, as the published modules read."""
    center, groups = sampled_groups(cloud, n_groups, size)

    def convolve(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.conv1d(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def batch_norm(x: torch.Tensor, name: str) -> torch.Tensor:
        mean, var = state[f"{name}.running_mean"].clone(), state[f"{name}.running_var"].clone()
        return F.batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"], training=training)

    def dense(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def layer_norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, (384,), state[f"{name}.weight"], state[f"{name}.bias"])

    x = convolve(groups.transpose(1, 2), "encoder.first_conv.0")
    x = convolve(F.relu(batch_norm(x, "encoder.first_conv.1")), "encoder.first_conv.3")
    x = torch.cat([x.max(dim=2, keepdim=True).values.expand(-1, -1, size), x], dim=1)
    x = F.relu(batch_norm(convolve(x, "encoder.second_conv.0"), "encoder.second_conv.1"))
    x = convolve(x, "encoder.second_conv.3").max(dim=2).values
    position = dense(F.gelu(dense(center, "pos_embed.0")), "pos_embed.2")
    prefix = 0
    if "cls_token" in state:  # Point-BERT's
        prefix = 1
        x = torch.cat([state["cls_token"][0], dense(x, "reduce_dim")])
        position = torch.cat([state["cls_pos"][0], position])
    features = []
    for i in range(max(layers) + 1):
        block = f"blocks.blocks.{i}"
        x = x + position
        heads = dense(layer_norm(x, f"{block}.norm1"), f"{block}.attn.qkv").view(len(x), 3, 6, 64)
        q, k, v = heads.permute(1, 2, 0, 3)
        mixed = torch.softmax(q @ k.transpose(1, 2) / 8.0, dim=-1) @ v
        x = x + dense(mixed.permute(1, 0, 2).reshape(len(x), 384), f"{block}.attn.proj")
        x = x + dense(F.gelu(dense(layer_norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
        if i in layers:
            features.append(layer_norm(x, "norm")[prefix:])
    return torch.cat(features, dim=1), center


def clouds(*sizes: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.rand(n, 3, generator=generator) * 0.1 + torch.tensor([0.0, 0.0, 0.4]) for n in sizes]
