"""Which Ray the work is done on."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from mmad_bank.distributed.cluster import connect
from mmad_bank.errors import InputError


def test_the_ray_that_the_process_has_joined_is_taken_and_left_alone(cluster: Any) -> None:
    with connect(workers=2) as ray:
        assert ray.get(ray.remote(lambda: 3).remote()) == 3
    assert cluster.is_initialized()


def test_another_cluster_than_the_joined_one_is_refused(cluster: Any) -> None:
    with pytest.raises(
        InputError, match=r"^address: expected the Ray that this process has joined, .*, found 1\.2\.3\.4:5$"
    ):
        with connect("1.2.3.4:5"):
            pass


@pytest.mark.parametrize("workers", [0, -1, 2.5])
def test_workers_are_counted(workers: Any) -> None:
    with pytest.raises(InputError, match=r"^workers: "):
        with connect(workers=workers):
            pass


def test_a_missing_ray_is_said_in_one_line() -> None:
    program = (
        "import sys; sys.modules['ray'] = None\n"
        "from mmad_bank.distributed.cluster import connect\n"
        "from mmad_bank.errors import MissingExtraError\n"
        "try: connect().__enter__()\n"
        "except MissingExtraError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.count("\n") == 1
    assert "mmad-bank[ray]" in said
