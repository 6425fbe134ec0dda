"""The OpenAPI description is true: requests that are made up from it, good and bad, get answers that it names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

for package in ("fastapi", "uvicorn", "timm", "tifffile"):
    pytest.importorskip(package)

from running_service import calibrated_bank, running
from serving_models import save_picture_model

_HOOKS = """
import schemathesis

@schemathesis.hook
def map_path_parameters(context, path_parameters):
    # Made-up names are of no model; half of the requests are to find one.
    if path_parameters and "name" in path_parameters and len(str(path_parameters["name"])) % 2:
        path_parameters = {**path_parameters, "name": {names}[len(path_parameters["name"]) // 2 % 2]}
    if path_parameters and "version" in path_parameters and len(str(path_parameters["version"])) % 2:
        path_parameters = {**path_parameters, "version": "1"}
    return path_parameters
"""


def test_the_description_names_every_status_and_model() -> None:
    import tempfile

    from mmad_bank.serving import Settings, create_app

    description = create_app(Settings(tempfile.mkdtemp())).openapi()
    for path, methods in description["paths"].items():
        for one in methods.values():
            statuses = set(one["responses"])
            assert "200" in statuses
            assert path.startswith("/v2/health") or {"401", "403"} <= statuses, path
            assert "{name}" not in path or "404" in statuses, path
            assert one["description"].endswith((".", "it.")), path


@pytest.mark.slow
def test_schemathesis_finds_no_fault(tmp_path: Path) -> None:
    pytest.importorskip("schemathesis")
    save_picture_model(tmp_path / "models" / "tile").rename(tmp_path / "pictures")
    calibrated_bank().save(tmp_path / "models" / "dump.bank")
    (tmp_path / "hooks.py").write_text(_HOOKS.replace("{names}", '["tile", "dump"]'))
    with running(tmp_path / "models", max_body=200_000, timeout=120) as service:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{service.url}/openapi.json", "--checks", "all"]
        # A tensor must fit its model, which no schema can say.
        options = [
            "--exclude-checks",
            "positive_data_acceptance",
            "--phases",
            "coverage,fuzzing",
            "-n",
            "15",
            "--seed",
            "1",
        ]
        environment = {
            **os.environ,
            "SCHEMATHESIS_HOOKS": "hooks",
            "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}",
        }
        # Repository requests of the run unload models: they are loaded again by others, and 404 is an answer too.
        found = subprocess.run(
            [*command, *options, "--no-color"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert found.returncode == 0, found.stdout[-8000:] + found.stderr[-2000:]
        assert service.metric("mmad_bank_requests_total") > 100
        text = service.get("/metrics").body.decode()
    assert 'status="200"' in text
    assert 'mmad_bank_model_events_total{event="loaded"}' in text, "some requests have found a model"
    assert 'status="500"' not in text
