"""A fitted method for programs without Python: its networks as ONNX, its banks as files, a manifest that says how.

A C++ program runs ``rgb.onnx`` on a picture (ONNX Runtime, OpenVINO, TensorRT), and gives the features that come out to
libmmad, which scores them by the bank.
"""

from mmad_bank.exporting.exports import EXPORT, export
from mmad_bank.exporting.writing import TOLERANCE

__all__ = ["EXPORT", "TOLERANCE", "export"]
