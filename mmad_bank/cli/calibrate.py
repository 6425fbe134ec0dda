"""The command that makes a bank know the scores of normal images: calibrate."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from mmad_bank._internal.progress import doing
from mmad_bank.cli._command import add
from mmad_bank.cli._dumps import AxesOfMaps, ByImage, Features, Key, Reading
from mmad_bank.cli._labels import say_defective
from mmad_bank.cli._options import (
    Address,
    CalibrationRate,
    Device,
    Json,
    Overwrite,
    Patches,
    RayWorkers,
    Reweight,
    Scratch,
    TrustIndex,
)
from mmad_bank.cli._output import emit, end, seconds, show_progress
from mmad_bank.cli._over_workers import own_device, selector_of
from mmad_bank.cli._swapped import check_bank_first
from mmad_bank.cli._values import check_once
from mmad_bank.cli._verdicts import calibration_facts, calibration_rows, parse_rate
from mmad_bank.cli._words import option
from mmad_bank.cli.bank import BankFile, check_target
from mmad_bank.errors import InputError


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    add(app, calibrate)


def calibrate(
    bank_file: BankFile,
    features: Features,
    out: Annotated[Path | None, option("--out", "Bank file", "")] = None,
    in_place: Annotated[bool, option("--in-place")] = False,
    folds: Annotated[int | None, option("--folds")] = None,
    reweight: Reweight = "m3dm",
    neighbors: Annotated[int | None, option("--neighbors")] = None,
    patches: Patches = None,
    false_alarm_rate: CalibrationRate = None,
    key: Key = None,
    axes: AxesOfMaps = "auto",
    by_image: ByImage = False,
    trust_index: TrustIndex = False,
    device: Device = "cpu",
    workers: RayWorkers = None,
    address: Address = None,
    scratch: Scratch = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Score normal images that took no part in a bank, and keep the scores in its file: score can judge by them.

    Files that cannot be used are named and left out, and the exit code is 3.

    All images that the bank was built from can be taken with --folds. Each is then scored by a bank of the others,
    which --workers select.
    """
    check_bank_first("calibrate", bank_file, features)
    check_once(features, "FEATURES")
    target = check_target(bank_file, features, out, in_place, overwrite)
    if folds is None and (workers, address) != (None, None):
        raise InputError(f"--{'address' if workers is None else 'workers'}: expected --folds beside it, found none")
    rate = parse_rate(false_alarm_rate)
    from mmad_bank import scoring
    from mmad_bank.bank import MemoryBank

    scoring.check_reweight(reweight, neighbors, "--neighbors")
    target_device = own_device(device, workers, address)
    begin = time.perf_counter()
    with doing(f"loading {bank_file}"):
        bank = MemoryBank.load(bank_file, device=target_device, trust_index=trust_index)
    left_out: dict[str, str] = {}
    dump = Reading(key, axes, by_image).open(features, bank.dim, None if folds else left_out)
    dump.check_extractor(bank.extractor, str(bank_file))
    say_defective(dump.sources)
    with selector_of(workers, address, scratch, device) as selector:
        found = bank.calibrate(
            dump, folds=folds, reweight=reweight, n_neighbors=neighbors, patches=patches, left_out=left_out,
            progress=show_progress(as_json), selector=selector,
        )  # fmt: skip
    calibrated = time.perf_counter()
    with doing(f"saving {target}"):
        bank.save(target)
    times = {"calibrate": calibrated - begin, "save": time.perf_counter() - calibrated}
    result = {"bank": str(target), **calibration_facts(found, rate), "left_out": left_out, "seconds": times}
    rows = {
        **calibration_rows(found, rate),
        "time": f"calibrate {seconds(times['calibrate'])}, save {seconds(times['save'])}",
    }
    emit(result, rows, title=f"calibrated {target}", as_json=as_json)
    end(left_out)
