"""``python -m mmad_bank.cli``."""

from mmad_bank.cli import main

main()
