"""Use an installed wheel: import it, build a bank, search it, and compare with NumPy. Needs nothing else."""

import tempfile
from pathlib import Path

import numpy as np

import mmad_bank as mb

rng = np.random.default_rng(0)
normal = rng.standard_normal((500, 16), dtype=np.float32)
queries = rng.standard_normal((20, 16), dtype=np.float32)

built = mb.MemoryBank.build(normal, ratio=0.2)
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "normal.bank"
    built.save(path)
    bank = mb.MemoryBank.load(path)
    distances, indices = (np.asarray(values) for values in bank.search(queries, k=3))
    every = np.linalg.norm(queries[:, None].astype(np.float64) - np.asarray(bank.vectors)[None], axis=2)

nearest = every.argsort(axis=1)[:, :3]
if not np.array_equal(indices, nearest):
    raise SystemExit("the search does not find the nearest vectors")
if not np.allclose(distances, np.take_along_axis(every, nearest, axis=1)):
    raise SystemExit("the distances are wrong")
print(f"mmad-bank {mb.__version__} at {Path(mb.__file__).parent}: {len(bank)} vectors, search as float64's")
