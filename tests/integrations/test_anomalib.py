"""anomalib's own Patchcore with the adaptor: engine, checkpoints, command line, exports. Skipped without anomalib."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("anomalib.models", reason="needs anomalib", exc_type=ImportError)

from anomalib.data import Folder
from anomalib.deploy import TorchInferencer
from anomalib.engine import Engine
from anomalib.models import Patchcore
from PIL import Image

from mmad_bank import MemoryBank
from mmad_bank.integrations import anomalib

pytestmark = pytest.mark.slow  # a minute in all, most of it anomalib's imports and engines

SMALL: dict[str, Any] = {"backbone": "resnet18", "layers": ["layer1", "layer2"], "pre_trained": False}
OURS = "mmad_bank.integrations.anomalib.Patchcore"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small drawn pictures: stripes, and stripes with a spot."""
    root = tmp_path_factory.mktemp("stripes")
    random = np.random.default_rng(0)
    for kind, n in (("good", 8), ("spot", 4)):
        (root / kind).mkdir()
        for number in range(n):
            picture = 40 * (np.indices((64, 64)).sum(0) // 8 % 2)[..., None] + random.integers(0, 40, (64, 64, 3))
            if kind == "spot":
                row, column = random.integers(8, 44, 2)
                picture[row : row + 12, column : column + 12] = (250, 20, 20)
            Image.fromarray(picture.astype(np.uint8)).save(root / kind / f"{number}.png")
    return root


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def data(folder: Path) -> Folder:
    return Folder(
        name="stripes", root=folder, normal_dir="good", abnormal_dir="spot", train_batch_size=4, eval_batch_size=4,
        num_workers=0, seed=0,
    )  # fmt: skip


def engine(tmp_path: Path) -> Engine:
    return Engine(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False, barebones=False
    )


def made(cls: Any = Patchcore) -> Any:
    torch.manual_seed(0)
    return cls(**SMALL, pre_processor=Patchcore.configure_pre_processor((64, 64)), visualizer=False)


def fitted(model: Any, folder: Path, tmp_path: Path) -> tuple[Any, Engine]:
    runner = engine(tmp_path)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - anomalib's projection draws from it
    runner.fit(model=model, datamodule=data(folder))
    return model, runner


def predicted(model: Any, runner: Engine, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    found = runner.predict(model=model, datamodule=data(folder))
    return tuple(torch.cat([getattr(one, name) for one in found]) for name in ("pred_score", "anomaly_map"))


@pytest.fixture(scope="module")
def both(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A stock model and its engine, and an accelerated one, fitted with the same random numbers."""
    return tuple(
        fitted(model, folder, tmp_path_factory.mktemp("fit"))
        for model in (made(), anomalib.accelerate(made()))
    )  # fmt: skip


def is_fast(model: Any) -> bool:
    return type(model.model) is not anomalib._inner(made()).__class__


def test_an_engine_fits_and_predicts_the_same(both: Any, folder: Path) -> None:
    (stock, one), (ours, other) = both
    assert is_fast(ours)
    assert not is_fast(stock)
    torch.testing.assert_close(ours.model.memory_bank, stock.model.memory_bank, rtol=0, atol=0)
    for found, expected in zip(predicted(ours, other, folder), predicted(stock, one, folder), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    results = [runner.test(model=model, datamodule=data(folder))[0] for model, runner in both]
    assert results[0] == pytest.approx(results[1], abs=1e-6)
    assert results[0]["image_AUROC"] > 0.9


def test_a_fitted_model_is_accelerated(both: Any, folder: Path) -> None:
    (stock, runner), _ = both
    expected = predicted(stock, runner, folder)
    try:
        anomalib.accelerate(stock)
        assert is_fast(stock)
        for found, wanted in zip(predicted(stock, runner, folder), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    finally:
        anomalib.restore(stock)


@pytest.mark.parametrize("cls", ["stock", "ours"])
def test_checkpoints_go_from_one_to_the_other(both: Any, folder: Path, tmp_path: Path, cls: str) -> None:
    (stock, _), (ours, runner) = both
    saver = ours if cls == "stock" else stock  # what one has saved, the other loads
    trainer = (both[1] if saver is ours else both[0])[1].trainer
    path = tmp_path / "a.ckpt"
    trainer.strategy.connect(saver)
    trainer.save_checkpoint(path)
    loaded = (Patchcore if cls == "stock" else anomalib.Patchcore).load_from_checkpoint(path)
    assert is_fast(loaded) == (cls == "ours")
    assert torch.equal(loaded.model.memory_bank, saver.model.memory_bank)
    new = engine(tmp_path)
    found = predicted(loaded, new, folder)
    resumed = new.predict(model=made(type(loaded)), datamodule=data(folder), ckpt_path=path)
    torch.testing.assert_close(torch.cat([one.pred_score for one in resumed]), found[0], rtol=0, atol=0)
    torch.testing.assert_close(found[0], predicted(saver, runner, folder)[0], rtol=1e-4, atol=1e-4)


def test_checkpoints_load_without_this_package(both: Any, tmp_path: Path) -> None:
    _, (ours, runner) = both
    ckpt = tmp_path / "a.ckpt"
    runner.trainer.strategy.connect(ours)
    runner.trainer.save_checkpoint(ckpt)
    exported = [ours.to_torch(tmp_path / "one"), _subclass(ours).to_torch(tmp_path / "two")]
    code = """
import sys, warnings
warnings.simplefilter("ignore")
sys.modules["mmad_bank"] = None
from anomalib.models import Patchcore
from anomalib.deploy import TorchInferencer
Patchcore.load_from_checkpoint(sys.argv[1])
for path in sys.argv[2:]:
    print(type(TorchInferencer(path, device="cpu").model).__module__)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, ckpt, *exported], capture_output=True, text=True, check=False,
        env={**os.environ, "TRUST_REMOTE_CODE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [Patchcore.__module__] * 2


def _subclass(fitted: Any) -> Any:
    model = made(anomalib.Patchcore)
    model.load_state_dict(fitted.state_dict(), strict=False)
    return model.eval()


def test_exports_give_the_same_scores(both: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, (ours, _) = both
    pictures = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = ours.eval()(pictures)
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    found = TorchInferencer(ours.to_torch(tmp_path), device="cpu").predict(pictures)
    torch.testing.assert_close(found.pred_score, expected.pred_score, rtol=1e-4, atol=1e-4)
    program = torch.export.export(ours, (pictures,))
    assert "aten.topk" in str(program.graph)
    torch.testing.assert_close(program.module()(pictures).pred_score, expected.pred_score, rtol=1e-4, atol=1e-4)


def test_the_onnx_export_gives_the_same_scores(both: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    _, (ours, _) = both
    path = ours.to_onnx(tmp_path, input_size=(64, 64))
    pictures = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs = dict(
        zip([one.name for one in session.get_outputs()], session.run(None, {"input": pictures.numpy()}), strict=True)
    )
    np.testing.assert_allclose(outputs["pred_score"].ravel(), ours.eval()(pictures).pred_score, rtol=1e-4, atol=1e-4)


def test_the_command_line_takes_the_class(folder: Path, tmp_path: Path) -> None:
    code = "from anomalib.cli.cli import main; main()"
    words = [
        "train", "--model", OURS, "--model.backbone", "resnet18", "--model.layers", "[layer1]", "--model.pre_trained",
        "false", "--model.visualizer", "false", "--data", "anomalib.data.Folder", "--data.name", "stripes",
        "--data.root", str(folder), "--data.normal_dir", "good", "--data.abnormal_dir", "spot", "--data.num_workers",
        "0", "--default_root_dir", str(tmp_path),
        "--trainer.accelerator", "cpu",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *words], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Selecting Coreset Indices" not in done.stderr  # the bar of anomalib's own loop
    (path,) = tmp_path.rglob("*.ckpt")
    assert len(anomalib.to_bank(path)) > 10


def test_a_checkpoint_becomes_a_bank_file_and_a_checkpoint_again(both: Any, folder: Path, tmp_path: Path) -> None:
    _, (ours, runner) = both
    runner.trainer.strategy.connect(ours)
    runner.trainer.save_checkpoint(tmp_path / "a.ckpt")
    bank = anomalib.to_bank(tmp_path / "a.ckpt")
    bank.save(tmp_path / "a.bank")
    half = MemoryBank.build(MemoryBank.load(tmp_path / "a.bank").vectors, 0.5)
    anomalib.write_checkpoint(half, tmp_path / "a.ckpt", tmp_path / "half.ckpt")
    loaded = Patchcore.load_from_checkpoint(tmp_path / "half.ckpt")
    assert torch.equal(loaded.model.memory_bank, half.vectors)
    expected = predicted(anomalib.from_bank(half, made()), engine(tmp_path), folder)
    torch.testing.assert_close(
        loaded.model.eval()(torch.zeros(1, 3, 64, 64)).pred_score,
        anomalib.from_bank(half, made()).model.eval()(torch.zeros(1, 3, 64, 64)).pred_score, rtol=1e-4, atol=1e-4,
    )  # fmt: skip
    assert len(expected[0])
    code = """
import sys
sys.modules["anomalib"] = None
import mmad_bank as mb
print(len(mb.integrations.anomalib.to_bank(sys.argv[1])))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.ckpt"], capture_output=True, text=True, check=False
    )
    assert done.stdout == f"{len(bank)}\n", done.stderr


def test_our_bank_scores_as_anomalib_does(both: Any) -> None:
    (stock, _), _ = both
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = stock.model.eval()(pictures).pred_score
        patches = stock.model.train()(pictures)
        stock.model.eval().embedding_store.clear()
    scores = anomalib.to_bank(stock).score(
        patches.reshape(2, -1, patches.shape[1]), reweight="patchcore", n_neighbors=9
    )
    torch.testing.assert_close(scores.image, expected, rtol=1e-4, atol=1e-4)
