"""What ``benchmarks/gpu.py`` measures: one module for each group of parts, and what they share."""
