"""The CUDA kernels behind the ops: PyTorch owns the memory and the stream, the native core does the work.

Types, shapes, devices and numbers are checked here too (:mod:`.checks`), for a wrong one would be a read past the end
of an array; values are the callers' to check. Nothing here waits for the device except :func:`k_center_greedy`, which
reads its progress once per block of picks, and a shard that is asked for its candidates.
"""

from mmad_bank.ops._cuda.checks import check_search
from mmad_bank.ops._cuda.device import MAX_DIM, MAX_GROUP, MAX_INTERPOLATION, MAX_NEIGHBORS, available, covers
from mmad_bank.ops._cuda.farthest_point_sample import farthest_point_sample, sample_batch
from mmad_bank.ops._cuda.interpolate_features import interpolate_features
from mmad_bank.ops._cuda.k_center_greedy import k_center_greedy
from mmad_bank.ops._cuda.k_center_shards import CudaShard
from mmad_bank.ops._cuda.knn import CudaIndex
from mmad_bank.ops._cuda.knn_group import knn_group

__all__ = [
    "MAX_DIM",
    "MAX_GROUP",
    "MAX_INTERPOLATION",
    "MAX_NEIGHBORS",
    "CudaIndex",
    "CudaShard",
    "available",
    "check_search",
    "covers",
    "farthest_point_sample",
    "interpolate_features",
    "k_center_greedy",
    "knn_group",
    "sample_batch",
]
