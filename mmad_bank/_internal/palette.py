"""The colours of charts, pages and figures: a thing has one colour wherever it is drawn.

``report/style.css`` has the neutral ones as properties of the same names, with others for dark screens.
"""

from __future__ import annotations

import zlib

from mmad_bank._internal import sections

INK = "#16191d"
"""Text, and the curve of the result."""
SOFT = "#5c6570"
"""Text that matters less."""
FAINT = "#8b949e"
"""Axes, and the bars of good images."""
PALE = "#b4bac2"
"""What lies behind something else."""
RULE = "#e3e6ea"
"""Grids."""
BAD = "#c62a36"
"""Defects, and what is pointed at."""

BLUE, AMBER, GREEN, VIOLET, PINK, CYAN = "#2563eb", "#d97706", "#059669", "#7c3aed", "#db2777", "#0891b2"
ORANGE, LIME, BROWN, OCHRE, SLATE, RED = "#ea580c", "#65a30d", "#92400e", "#a16207", "#64748b", "#dc2626"
SERIES = (BLUE, AMBER, GREEN, VIOLET, PINK, CYAN)
"""Things of a kind, in their order: the parts of a method, the precisions of a search."""

SECTIONS = {
    sections.READING: "#94a3b8", sections.PREPROCESSING: SLATE, sections.features_of("rgb"): BLUE,
    sections.features_of("xyz"): "#93c5fd", sections.FUSION: VIOLET, sections.ADAPTATION: "#c4b5fd",
    sections.MAPPINGS: GREEN, sections.SEARCH: ORANGE, sections.DECISION: "#fdba74", sections.STUDENT: PINK,
    sections.DISTANCES: "#f9a8d4", sections.ALIGNMENT: "#fde68a", sections.OTHER: "#d1d5db",
}  # fmt: skip
"""A section of the time has one colour in all charts."""
_OTHER_SECTIONS = (CYAN, "#a5f3fc", LIME, "#d9f99d", OCHRE, RED)


def section_colour(name: str) -> str:
    """Return the colour of a section; one that is not known has its own by its name, whatever else is in the chart."""
    return SECTIONS.get(name) or _OTHER_SECTIONS[zlib.crc32(name.encode()) % len(_OTHER_SECTIONS)]
