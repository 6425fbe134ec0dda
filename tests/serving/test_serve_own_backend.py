"""Another service's models and batches behind the application."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from mmad_bank import MemoryBank

pytest.importorskip("fastapi")

from mmad_bank.serving import Settings, create_app
from mmad_bank.serving.backend import Backend
from mmad_bank.serving.models import Answer, Work


def test_a_backend_of_ones_own_has_the_models_and_computes(tmp_path: Path) -> None:
    MemoryBank(torch.rand(5, 3)).save(tmp_path / "tile.bank")
    asked: list[str] = []

    class Elsewhere(Backend):
        async def submit(self, name: str, work: Work) -> Answer:
            asked.append(name)
            return Answer({}, {"size": work.size})

    settings = Settings(tmp_path)
    backend = create_app(settings, Elsewhere(settings)).state.backend
    assert asyncio.run(backend.score("tile", Work({}, "any", 2))).parameters == {"size": 2}
    assert asked == ["tile"]
