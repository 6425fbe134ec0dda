"""The shell completes commands, options and their values, as fast as the help is shown."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = "import sys; sys.argv[0] = 'mmad-bank'; from mmad_bank.cli import main; main()"


def complete(words: str) -> list[str]:
    """Return what bash is offered behind ``mmad-bank`` and the words; the last one is incomplete."""
    environment = {
        **os.environ, "_MMAD_BANK_COMPLETE": "complete_bash", "COMP_WORDS": f"mmad-bank {words}",
        "COMP_CWORD": str(len(words.split(" "))),
    }  # fmt: skip
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("ev", ["evaluate"]),
        ("build x --rat", ["--ratio"]),
        ("prepare x --over", ["--overwrite"]),
        ("fit p", ["patchcore"]),
        ("fit m", ["m3dm", "mdss"]),
        ("prepare x --recipe m", ["m3dm", "mdss"]),
        ("score x --reweight p", ["patchcore"]),
        ("build x --si", []),  # a former spelling is taken, not offered
    ],
)
def test_bash(words: str, offered: list[str]) -> None:
    assert complete(words) == offered


def test_completion_needs_nothing_heavy() -> None:
    script = (
        "import atexit, sys\n"
        "def check():\n"
        "    heavy = {'torch', 'numpy', 'timm'} & set(sys.modules)\n"
        "    print(heavy or 'light', file=sys.stderr)\n"
        "atexit.register(check)\n" + SCRIPT
    )
    environment = {
        **os.environ, "_MMAD_BANK_COMPLETE": "complete_bash", "COMP_WORDS": "mmad-bank fit m", "COMP_CWORD": "2"
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["m3dm", "mdss"]
    assert done.stderr == "light\n"


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_takes_the_function(tmp_path: Path) -> None:
    """The function that --show-completion prints fills COMPREPLY when bash calls it."""
    program = tmp_path / "mmad-bank"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{SCRIPT}" "$@"\n')
    program.chmod(0o755)
    script = (
        f'PATH="{tmp_path}:$PATH"\n'
        'eval "$(env _MMAD_BANK_COMPLETE=source_bash mmad-bank)"\n'
        "COMP_WORDS=(mmad-bank prepare x --recipe ey); COMP_CWORD=4\n"
        'set -- $(complete -p mmad-bank); while [ "$1" != -F ]; do shift; done\n'
        '"$2" mmad-bank; echo "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "eyecandies\n", done.stderr
