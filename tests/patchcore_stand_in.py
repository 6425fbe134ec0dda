"""A model with the names that anomalib's Patchcore has, for tests where anomalib is not installed."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Projection:
    """A random projection with the methods of anomalib's."""

    def fit(self, rows: Tensor) -> Projection:
        self.matrix = torch.randn(rows.shape[1], 6, dtype=rows.dtype)
        return self

    def transform(self, rows: Tensor) -> Tensor:
        return rows @ self.matrix


class KCenterGreedy:
    """The plain greedy loop: projection and first row are drawn as anomalib draws them, in that order."""

    def __init__(self, embedding: Tensor, sampling_ratio: float) -> None:
        self.embedding, self.coreset_size, self.model = embedding, int(len(embedding) * sampling_ratio), Projection()
        if self.coreset_size < 1:
            raise ValueError("coreset_size must be positive")

    def sample_coreset(self) -> Tensor:
        rows = self.model.fit(self.embedding).transform(self.embedding)
        picks = [int(torch.randint(high=len(rows), size=(1,)))]
        nearest = torch.full((len(rows),), torch.inf)
        while len(picks) < self.coreset_size:
            nearest = torch.minimum(nearest, (rows - rows[picks[-1]]).norm(dim=1))
            picks.append(int(nearest.argmax()))
        return self.embedding[picks]


class PatchcoreModel(nn.Module):
    """Pictures are their own features: (B, 3, H, W) → a patch per pixel."""

    def __init__(self, num_neighbors: int = 4) -> None:
        super().__init__()
        self.num_neighbors = num_neighbors
        self.scale = nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_buffer("memory_bank", torch.empty(0))
        self.memory_bank: Tensor
        self.embedding_store: list[Tensor] = []
        self.searches = 0

    def forward(self, pictures: Tensor) -> Tensor:
        patches = (pictures.movedim(1, -1) * self.scale).reshape(-1, 3)
        if self.training:
            self.embedding_store.append(patches)
            return patches
        distances, rows = self.nearest_neighbors(embedding=patches, n_neighbors=1)
        around = self.nearest_neighbors(self.memory_bank[rows[:1]], n_neighbors=self.num_neighbors)[0]
        return torch.cat([distances.reshape(len(pictures), -1).amax(1), around.reshape(-1)])

    def subsample_embedding(self, sampling_ratio: float, embeddings: Tensor | None = None) -> None:
        if not self.embedding_store:
            raise ValueError("Embedding store is empty")
        self.memory_bank = torch.vstack(self.embedding_store)
        self.embedding_store.clear()
        self.memory_bank = KCenterGreedy(self.memory_bank, sampling_ratio).sample_coreset()

    def nearest_neighbors(self, embedding: Tensor, n_neighbors: int) -> tuple[Tensor, Tensor]:
        self.searches += 1
        distances = (embedding[:, None] - self.memory_bank).square().sum(-1).sqrt()
        if n_neighbors == 1:
            nearest = distances.min(1)
            return nearest.values, nearest.indices
        found = distances.topk(n_neighbors, largest=False)
        return found.values, found.indices

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        self.memory_bank.resize_(state_dict[f"{prefix}memory_bank"].shape)
        super()._load_from_state_dict(state_dict, prefix, *args)


class Patchcore(nn.Module):
    """What holds the model, as anomalib's Lightning module does."""

    def __init__(self) -> None:
        super().__init__()
        self.model = PatchcoreModel()
        self.register_buffer("_is_fitted", torch.tensor([False]))

    def forward(self, pictures: Tensor) -> Tensor:
        found: Tensor = self.model(pictures)
        return found
