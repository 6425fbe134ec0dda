"""Facts that the result of a fit depends on, so that another fit does not take up what this one has left."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from mmad_bank._internal.files import changed, real_path
from mmad_bank.data.dataset import SampleDataset
from mmad_bank.data.recipes import Preprocessing
from mmad_bank.data.sequences import Joined, Samples, named

_APART = {"device", "false_alarm_rate"}
"""Arguments that no stage depends on."""


def fingerprint(
    method: str, arguments: Mapping[str, Any], data: Sequence[Samples | None], preprocessing: Preprocessing
) -> dict[str, Any]:
    """Say what a fit's stages depend on: the method, its arguments (not the device), samples and their preprocessing.

    Returns:
        What JSON gives back as it is.
    """
    own = {name: value for name, value in arguments.items() if name not in _APART}
    samples = [[] if one is None else _ids(one) for one in data]
    content = {"method": method, "arguments": own, "data": samples, **files_named(own)}
    return json.loads(json.dumps({**content, "preprocessing": preprocessing.as_json()}))


def files_named(arguments: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Tell weights that are named by their files from others under the same names; nothing if there are none.

    Example:
        >>> files_named({"rgb": "wide_resnet50_2", "rgb_weights": "pretrained"})
        {}
    """
    files = {name: value for name, value in arguments.items() if isinstance(value, str) and os.path.isfile(value)}
    return {"files": {name: changed(path) for name, path in files.items()}} if files else {}


def _ids(samples: Samples) -> list[str]:
    """Tell samples apart: a data set's by folder, id and time of change, others by number."""
    if isinstance(samples, Joined):
        return [one for part in samples.parts for one in _ids(part)]
    if isinstance(samples, SampleDataset):
        return [f"{real_path(samples.path)}:{record.id}:{record.changed}" for record in samples.records]
    return [name for name, _ in named(samples)]
