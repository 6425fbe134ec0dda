"""Headers of banks are what docs/reference/bank-file.schema.json says, and its page names every field."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from safetensors import safe_open

from mmad_bank import MemoryBank, StreamingBank
from mmad_bank.cli._words import BankPrecision
from mmad_bank.scoring import Reweight

jsonschema = pytest.importorskip("jsonschema")
ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "docs/reference/bank-file.schema.json").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs/reference/bank-file.md").read_text(encoding="utf-8")
FORMATS = ROOT / "tests/formats"
FEATURES = np.random.default_rng(0).normal(size=(6, 20, 12)).astype(np.float32)
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def header_of(path: Path) -> Any:
    """Return a bank file's header; that of other files holds weights, and is empty or of another format."""
    with safe_open(path, "pt") as file:
        return json.loads((file.metadata() or {}).get("mmad_bank", "{}"))


SAVED = [path for path in sorted(FORMATS.glob("*/**/*.safetensors")) if header_of(path).get("format") == "mmad-bank"]


def extended() -> MemoryBank:
    bank = MemoryBank.build(FEATURES, size=30)
    assert bank.extend(FEATURES[:1] + 9) > 0
    return bank


def named(tmp_path: Path) -> MemoryBank:
    np.savez(tmp_path / "train.npz", features=FEATURES, names=np.array([f"good/{i}" for i in range(6)]))
    (tmp_path / "extraction.json").write_text(json.dumps({"extractor": "a network", "grid": [4, 5]}))
    bank = MemoryBank.build(tmp_path / "train.npz", size=30)
    assert bank.sources[0].names is not None
    assert bank.sources[0].grid == (4, 5)
    return bank


def calibrated() -> MemoryBank:
    bank = MemoryBank.build(FEATURES, size=30)
    bank.calibrate(FEATURES, folds=3)
    return bank


def streamed() -> MemoryBank:
    stream = StreamingBank(30, standardize=True)
    stream.update(FEATURES, note={"day": 1})
    return stream.bank


def indexed() -> MemoryBank:
    pytest.importorskip("faiss")
    return MemoryBank.build(FEATURES, size=30, index="IVF2,Flat")


def graph() -> MemoryBank:
    pytest.importorskip("faiss")
    return MemoryBank.build(FEATURES, size=30, index="HNSW8", ef_search=16)


KINDS: dict[str, Callable[[Path], MemoryBank]] = {
    "plain": lambda _: MemoryBank.build(FEATURES, size=30),
    "rows": lambda _: MemoryBank.build(FEATURES.reshape(-1, 12), size=30, start=3),
    "given vectors": lambda _: MemoryBank(FEATURES[0], extractor="a network"),
    "standardized": lambda _: MemoryBank.build(FEATURES, size=30, standardize=True),
    "8 bits": lambda _: MemoryBank.build(FEATURES, size=30, bank_precision="int8"),
    "projected": lambda _: MemoryBank.build(FEATURES, size=30, projection_dim=5, seed=7),
    "inverted lists": lambda _: indexed(),
    "graph": lambda _: graph(),
    "calibrated": lambda _: calibrated(),
    "extended": lambda _: extended(),
    "of a stream": lambda _: streamed(),
    "named": named,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_bank_is_as_the_schema_says(tmp_path: Path, kind: str) -> None:
    KINDS[kind](tmp_path).save(tmp_path / "a.bank")
    VALIDATOR.validate(header_of(tmp_path / "a.bank"))


@pytest.mark.parametrize("rule", get_args(Reweight))
def test_a_calibration_by_any_rule_is_as_the_schema_says(tmp_path: Path, rule: Reweight) -> None:
    bank = MemoryBank.build(FEATURES, size=30)
    bank.calibrate(FEATURES[:3] + 1, reweight=rule)
    bank.save(tmp_path / "a.bank")
    assert header_of(tmp_path / "a.bank")["calibration"]["reweight"] == rule
    VALIDATOR.validate(header_of(tmp_path / "a.bank"))


@pytest.mark.parametrize("precision", get_args(BankPrecision))
def test_a_bank_of_any_precision_is_as_the_schema_says(tmp_path: Path, precision: BankPrecision) -> None:
    MemoryBank.build(FEATURES, size=30, bank_precision=precision).save(tmp_path / "a.bank")
    VALIDATOR.validate(header_of(tmp_path / "a.bank"))


def test_the_kinds_together_use_every_field(tmp_path: Path) -> None:
    """No field of the schema is one that no bank has; and the tests above see each with a value."""
    seen: set[str] = set()
    for kind, make in KINDS.items():
        make(tmp_path).save(tmp_path / f"{kind}.bank")
        header = header_of(tmp_path / f"{kind}.bank")
        seen |= {name for name, value in header.items() if value not in (None, [], {})} | set(header["tensors"])
    assert seen == {*SCHEMA["properties"], *SCHEMA["properties"]["tensors"]["properties"]}


@pytest.mark.parametrize("path", SAVED, ids=lambda path: str(path.relative_to(FORMATS)))
def test_a_saved_bank_of_any_version_is_as_the_schema_says(path: Path) -> None:
    VALIDATOR.validate(header_of(path))


def test_banks_of_every_version_are_there() -> None:
    versions = {path.parent.name for path in FORMATS.glob("*/said.npz")}
    assert versions == {path.relative_to(FORMATS).parts[0] for path in SAVED} != set()


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("field", SCHEMA["properties"])
def test_another_value_is_refused(tmp_path: Path, field: str) -> None:
    MemoryBank.build(FEATURES, size=30).save(tmp_path / "a.bank")
    header = header_of(tmp_path / "a.bank")
    for wrong in (-1, "?" if field not in ("index", "extractor") else 3, {"no such field": 1}):
        changed = {**copy.deepcopy(header), field: wrong}
        assert not VALIDATOR.is_valid(changed), wrong
    if field in SCHEMA["required"]:
        del header[field]
        assert not VALIDATOR.is_valid(header)


def test_an_unknown_field_is_refused(tmp_path: Path) -> None:
    MemoryBank.build(FEATURES, size=30).save(tmp_path / "a.bank")
    assert not VALIDATOR.is_valid({**header_of(tmp_path / "a.bank"), "colour": "red"})


def test_the_page_names_every_field() -> None:
    for name in (*SCHEMA["properties"], *SCHEMA["properties"]["tensors"]["properties"]):
        assert f"`{name}`" in PAGE, name
