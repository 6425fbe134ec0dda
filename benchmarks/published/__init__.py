"""Figures as published, by paper and table: nothing here was measured by these benchmarks.

A file holds one paper's tables: every figure as printed, what a row is in words of mmad-bank's methods, and marks where
the paper or its text at hand is damaged or contradicts itself. A figure that is not at hand is missing; none is
estimated.
"""

from published.accuracy import ACCURACIES, Accuracy, accuracy_of, quoted
from published.reading import CATEGORIES, METRICS, PAPERS, Figure, Mark, Row, Table, baselines, sources, table, tables

__all__ = [
    "ACCURACIES", "CATEGORIES", "METRICS", "PAPERS", "Accuracy", "Figure", "Mark", "Row", "Table", "accuracy_of",
    "baselines", "quoted", "sources", "table", "tables",
]  # fmt: skip
