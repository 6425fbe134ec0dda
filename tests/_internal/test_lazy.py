"""Public names load when they are used, and former places lead to the present ones."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import mmad_bank as mb


def test_every_public_submodule_is_found_as_an_attribute() -> None:
    code = "import mmad_bank as mb; [getattr(mb, name) for name in dir(mb)]; print(mb.methods.cfm.CrossmodalMapping)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, mmad_bank; print([name for name in ('torch', 'numpy', 'timm') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("former", "now"),
    [
        ("data.write_synthetic", "synthetic.write_synthetic"),
        ("data.normalise_rgb", "data.normalize_rgb"),
        ("features.extraction.make_xyz_extractor", "features.factory.make_xyz_extractor"),
        ("features.extraction.Extractors", "extraction.Extractors"),
    ],
)
def test_former_places_lead_to_the_present_ones(former: str, now: str) -> None:
    def found(name: str) -> object:
        module, _, attribute = f"mmad_bank.{name}".rpartition(".")
        return getattr(importlib.import_module(module), attribute)

    with pytest.warns(DeprecationWarning, match=f"mmad_bank.{former} is mmad_bank.{now} now"):
        old = found(former)
    assert old is found(now)


def test_what_was_never_there_is_not_there() -> None:
    with pytest.raises(AttributeError, match=r"module 'mmad_bank\.data' has no attribute 'nothing'"):
        mb.data.nothing  # noqa: B018
