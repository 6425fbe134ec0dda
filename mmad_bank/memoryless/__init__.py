"""Detectors without memory banks, in parts: PDN student and teacher, signed distances, crossmodal mappings.

The methods built of them are in :mod:`mmad_bank.methods`.
"""
