"""The page "Serve over HTTP" runs: its requests by curl and by tritonclient, and what it names exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

for package in ("fastapi", "uvicorn", "timm", "tifffile"):
    pytest.importorskip(package)

sys.path.append(str(Path(__file__).parents[1] / "docs"))

from data_trees import add_picture
from helpers import good
from running_service import Service, images, running
from serving_models import decoded, save_picture_model
from snippets import DOCS, commands, snippets

from mmad_bank import MemoryBank

PAGE = DOCS / "how-to/serve.md"
TEXT = PAGE.read_text(encoding="utf-8")
EXAMPLES = DOCS.parent / "examples" / "serve"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Service]]:
    folder = tmp_path_factory.mktemp("page")
    save_picture_model(folder / "models" / "part").rename(folder / "pictures")
    add_picture(folder / "new.png", seed=99, spot=True)
    np.save(folder / "train.npy", images(10))
    np.save(folder / "test.npy", images(3))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for one in snippets(PAGE):
            for words in commands(one) if one.runs and one.language == "sh" else ():
                good(*words[1:])
    with running(folder / "models") as service:
        yield folder, service


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_requests_by_curl(place: tuple[Path, Service]) -> None:
    folder, service = place
    lines = [line for one in snippets(PAGE) for line in one.text.splitlines() if line.startswith("curl")]
    assert len(lines) == 4
    for line in lines:
        command = line.replace("http://127.0.0.1:8000", service.url)
        answer = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=True).stdout
        assert "error" not in (json.loads(answer) if answer else {}), line
    assert decoded((folder / "overlay.png").read_bytes()).shape[2] == 3


def test_the_programs(
    place: tuple[Path, Service], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tritonclient.http")
    folder, service = place
    monkeypatch.chdir(folder)
    programs = [one.text for one in snippets(PAGE) if one.language == "python"]
    for text in programs:
        exec(compile(text.replace("127.0.0.1:8000", service.host), PAGE.name, "exec"), {})
    bank = MemoryBank.load("models/dump.bank")
    assert capsys.readouterr().out.splitlines() == [str(bank.score(np.load("test.npy")).image.numpy()), "mmad-bank"]


def test_the_page_names_every_route_parameter_and_metric(place: tuple[Path, Service]) -> None:
    _, service = place
    description = service.get("/openapi.json").json
    for path in description["paths"]:
        words = path.replace("{name}", "NAME").replace("/versions/{version}", "/versions/1")
        short = re.sub(r"/versions/1.*", "/versions/1", words)
        assert short in TEXT or f"...{short.rpartition('NAME')[2]}" in TEXT, path
    for one in description["paths"]["/predict/{name}"]["post"]["parameters"]:
        assert one["in"] == "path" or f"| `{one['name']}` |" in TEXT, one["name"]
    for field in description["components"]["schemas"]["PredictAnswer"]["properties"]:
        assert field in ("model", "id") or f"`{field}`" in TEXT, field
    found = re.findall(r"^# TYPE (mmad_bank_\w+) (\w+)$", service.get("/metrics").body.decode(), re.MULTILINE)
    assert len(found) > 8
    for name, _ in found:
        assert f"`{name}`" in TEXT or name.endswith("_created"), name


def test_the_examples_hold_what_the_program_takes() -> None:
    from snippets import check_words

    docker = (EXAMPLES / "Dockerfile").read_text()
    entry = re.search(r"^ENTRYPOINT (.+)$", docker, re.MULTILINE)
    assert entry is not None
    yaml = pytest.importorskip("yaml")
    compose = yaml.safe_load((EXAMPLES / "docker-compose.yml").read_text())["services"]
    check_words([*json.loads(entry[1]), *compose["mmad-bank"]["command"]])
    assert (EXAMPLES / compose["mmad-bank"]["build"]["context"]).resolve() == DOCS.parent.resolve()
    assert (DOCS.parent / compose["mmad-bank"]["build"]["dockerfile"]).is_file()
    scraped = yaml.safe_load((EXAMPLES / "prometheus.yml").read_text())["scrape_configs"][0]
    assert scraped["static_configs"] == [{"targets": ["mmad-bank:8000"]}]
