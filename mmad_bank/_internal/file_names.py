"""Files by which it is known what a folder holds; here, so that nobody imports their writers for a name."""

MODEL = "model.json"
"""In a folder that a method saved."""
BANKS = "banks.json"
"""In a folder of several banks."""
EXTRACTION = "extraction.json"
"""Beside feature dumps."""
PREPARED = "prepared.json"
"""In a prepared data set."""
SYNTHETIC = "synthetic.json"
"""In a synthetic data set."""
ALL = (MODEL, BANKS, EXTRACTION, PREPARED, SYNTHETIC)
