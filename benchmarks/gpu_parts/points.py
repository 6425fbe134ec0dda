"""Part of the point clouds: sampling, grouping and interpolation of a batch."""

from __future__ import annotations

import torch
from common import Column

from gpu_parts import measuring
from gpu_parts.measuring import Report, Work
from mmad_bank.ops import _cuda


def run_points(report: Report) -> None:
    """Time sampling, grouping and interpolation of a batch of clouds."""
    n_clouds, size, groups, group_size, dim = report.sizes.clouds
    clouds = torch.randn(n_clouds, size, 3, device=report.device)
    features = torch.randn(n_clouds, groups, dim, device=report.device)
    picks = _cuda.sample_batch(clouds, groups, 0)
    centers = clouds.gather(1, picks[..., None].expand(-1, -1, 3))
    steps: dict[str, Work] = {
        f"farthest point sampling, {groups} of {size}": lambda: _cuda.sample_batch(clouds, groups, 0),
        f"grouping, {groups} x {group_size}": lambda: _cuda.knn_group(clouds, centers, group_size),
        f"interpolation, {size} points, {dim} features": lambda: _cuda.interpolate_features(
            clouds, centers, features, 3, 2.0, 1e-8
        ),
    }
    columns = [Column("name", "step"), Column("ms", "ms per cloud", ".3f"), Column("called", "as called", ".3f")]
    table = report.table(f"Point clouds, batch {n_clouds}", columns, headline=True)
    times = measuring.alternate_ms(steps, report.rounds, lambda work: measuring.device_ms(work, 1))
    called = measuring.alternate_ms(steps, report.rounds, measuring.wall_ms)
    for name, ms in times.items():
        report.row(table, name=name, ms=ms / n_clouds, called=called[name] / n_clouds)
    total = sum(times.values()) / n_clouds
    report.row(table, name="together", ms=total, called=sum(called.values()) / n_clouds)
    report.target("sampling + grouping + interpolation", "< 1 ms per cloud", f"{total:.3f} ms", total < 1)
    one = measuring.alternate_ms({"": lambda: _cuda.sample_batch(clouds[:1], groups, 0)}, report.rounds)[""]
    report.row(table, name=f"farthest point sampling of a single cloud ({1000 * one / groups:.2f} µs per pick)", ms=one)
    kernels = measuring.kernel_table(report)
    for name, work in steps.items():
        measuring.profile_kernels(report, kernels, name, work, 3)
