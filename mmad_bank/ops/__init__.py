"""The engine's operations: tensors in and out, CPU or CUDA by the tensors' device."""

from mmad_bank.ops import _registration as _registration  # makes torch.ops.mmad_bank
from mmad_bank.ops._dispatch import resolve_device, selection_fits
from mmad_bank.ops._system import system_info
from mmad_bank.ops.farthest_point_sample import farthest_point_sample
from mmad_bank.ops.interpolate_features import interpolate_features
from mmad_bank.ops.k_center_greedy import Coreset, extend_coreset, k_center_greedy
from mmad_bank.ops.knn import SearchIndex, knn
from mmad_bank.ops.knn_group import knn_group

__all__ = [
    "Coreset",
    "SearchIndex",
    "extend_coreset",
    "farthest_point_sample",
    "interpolate_features",
    "k_center_greedy",
    "knn",
    "knn_group",
    "resolve_device",
    "selection_fits",
    "system_info",
]
