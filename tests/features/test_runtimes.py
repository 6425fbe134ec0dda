"""Networks run by OpenVINO: features of PyTorch's, from threads, after new weights, in copies and pickles."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

pytest.importorskip("timm")
pytest.importorskip("openvino")

from small_parts import RGB, a_part

from mmad_bank.errors import InputError, MissingExtraError
from mmad_bank.features import EfficientNetLite, RGBExtractor, make_rgb_extractor
from mmad_bank.features.runtimes import _core
from mmad_bank.features.tiles import TiledExtractor
from mmad_bank.methods import M3DM, PatchCore, load

Network = EfficientNetLite | RGBExtractor


@pytest.fixture(scope="module", params=["efficientnet_lite0.reflect", "vit_tiny_patch16_224"])
def network(request: pytest.FixtureRequest) -> Network:
    torch.manual_seed(0)
    return make_rgb_extractor(request.param, "random", layers=(1,), grid=(8, 8), image_size=64)


@pytest.fixture(scope="module")
def other(network: Network) -> Network:
    """The same network, compiled once."""
    return network.by("openvino")


def close(found: torch.Tensor, expected: torch.Tensor, share: float = 1e-5) -> bool:
    return float((found - expected).abs().max()) <= share * float(expected.abs().max())


def images(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n", [1, 3])
def test_features_are_pytorchs(network: Network, other: Network, n: int) -> None:
    assert (network.runtime, other.runtime) == ("torch", "openvino")
    assert close(other(images(n)), network(images(n)))
    assert other(images(n)).dtype == torch.float32
    assert (other.name, other.grid, other.dim) == (network.name, network.grid, network.dim)


def test_what_pytorch_is_set_to_does_not_matter(network: Network) -> None:
    expected = network(images(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert close(network.by("openvino")(images(2)), expected)
    torch.set_default_dtype(torch.float64)
    try:
        given = images(2).to(torch.float32)
        assert close(network.by("openvino")(given), network(given))
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.inference_mode():
        assert close(network.by("openvino")(images(2)), expected)


def test_what_was_returned_is_not_written_over(other: Network) -> None:
    first = other(images(1))
    kept = first.clone()
    other(images(1, seed=1))
    assert torch.equal(first, kept)


def test_threads_share_a_network(other: Network) -> None:
    expected = [other(images(1, seed)) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: other(images(1, seed % 4)), range(32)))
    assert all(torch.equal(one, expected[seed % 4]) for seed, one in enumerate(found))


def test_new_weights_are_compiled_anew(network: Network) -> None:
    one = copy.deepcopy(network).by("openvino")
    before = one(images(2))
    with torch.no_grad():
        max(one.parameters(), key=torch.numel).mul_(1.5)
    assert not close(one(images(2)), before, 1e-2)
    assert close(one(images(2)), one.by("torch")(images(2)))


def test_other_sizes_of_images() -> None:
    network = make_rgb_extractor("efficientnet_lite0", "random", layers=(1,), grid=(4, 4))
    other = network.by("openvino")
    for size in ((64, 64), (96, 48)):
        x = torch.rand(1, 3, *size)
        assert close(other(x), network(x))


@pytest.mark.parametrize("model", ["resnet18", "efficientnet_lite0.reflect"])
def test_bfloat16_is_asked_for(model: str) -> None:
    torch.manual_seed(0)
    low = make_rgb_extractor(model, "random", image_size=64, grid=(8, 8), compute_dtype="bfloat16", runtime="openvino")
    exact = make_rgb_extractor(model, "random", image_size=64, grid=(8, 8), runtime="openvino")
    exact.load_state_dict(low.state_dict())
    found, expected = low(images(2)), exact(images(2))
    assert float((found - expected).norm() / expected.norm()) < 0.1
    has_units = "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert torch.equal(found, expected) != has_units, "float32 where the processor has no bfloat16"


def test_pickles_are_compiled_anew(network: Network, other: Network) -> None:
    expected = other(images(1))
    one = pickle.loads(pickle.dumps(other))
    assert one.runtime == "openvino"
    assert torch.equal(one(images(1)), expected)
    assert list(other.state_dict()) == list(network.state_dict()), "files of weights have the same names"


def test_gradients_are_pytorchs() -> None:
    network = RGBExtractor("vit_tiny_patch16_224", image_size=64, grid=(4, 4)).by("openvino")
    network.requires_grad_(True)
    network.features(images(1)).sum().backward()
    assert any(weight.grad is not None for weight in network.parameters())


def test_tiles_are_run_by_it() -> None:
    network = make_rgb_extractor("efficientnet_lite0", "random", layers=(1,), grid=(8, 8), image_size=64)
    tiled = TiledExtractor(network, 96, 64, 32)
    x = torch.rand(1, 3, 96, 96)
    assert close(tiled.by("openvino")(x), tiled(x))


def test_a_fitted_method_is_run_by_it(tmp_path: Path) -> None:
    method = M3DM(**RGB, banks=("rgb",), calibration="folds").fit([a_part(seed) for seed in range(6)])
    other = method.with_arguments(runtime="openvino")
    assert method.extractors_.networks["rgb"].runtime == "torch"
    expected, found = method.predict(a_part(9)), other.predict(a_part(9))
    assert found.score == pytest.approx(expected.score, rel=1e-4)
    assert (found.verdict, found.threshold) == (expected.verdict, expected.threshold), "the calibration is kept"
    other.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.arguments()["runtime"] == "openvino"
    assert again.predict(a_part(9)).score == found.score


def test_a_fit_by_it_gives_the_same_bank() -> None:
    parts = [a_part(seed) for seed in range(4)]
    banks = [
        PatchCore(**RGB, runtime=name, calibration="none").fit(parts).banks_["rgb"] for name in ("torch", "openvino")
    ]
    assert torch.equal(banks[0].source_rows, banks[1].source_rows)
    assert close(banks[1].vectors, banks[0].vectors)


def test_what_is_no_runtime_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="runtime: expected"):
        PatchCore(**RGB, runtime="tensorrt")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'mmad-bank\[openvino\]'"):
        make_rgb_extractor("efficientnet_lite0", "random", runtime="openvino")


def test_signals_are_handled_after_the_last_network_is_gone() -> None:
    """OpenVINO gives the thread that loads its plugin another stack for signals, which must not be freed in use."""
    code = """
import faulthandler, gc, signal, threading, torch
from mmad_bank.features import make_rgb_extractor

faulthandler.enable()  # its handlers run on that stack, as all of Python's do
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
networks = [make_rgb_extractor("efficientnet_lite0", "random", layers=(1,), grid=(4, 4)).by("openvino")]
networks[0](torch.rand(1, 3, 64, 64))

def let_go():
    networks.clear()
    gc.collect()

thread = threading.Thread(target=let_go)
thread.start()
thread.join()
taken = [bytearray(11568) for _ in range(2000)]
signal.raise_signal(signal.SIGUSR1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
