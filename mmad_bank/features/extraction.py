"""The former place of :mod:`mmad_bank.features.factory` and :mod:`mmad_bank.extraction`; names here give a warning."""

from mmad_bank._internal.lazy import lazily

_FACTORY = ("FPFHPatches", "PointPatches", "make_rgb_extractor", "make_xyz_extractor")
_MOVED = {name: f"mmad_bank.features.factory.{name}" for name in _FACTORY}
_MOVED |= {name: f"mmad_bank.extraction.{name}" for name in ("Extractors", "extract_to", "usable")}

__getattr__, __dir__ = lazily(__name__, {}, moved=_MOVED)
