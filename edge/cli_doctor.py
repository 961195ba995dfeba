"""`edge doctor`: what is wrong with this box, and how to mend it."""

from __future__ import annotations

import argparse


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to those of `edge`."""
