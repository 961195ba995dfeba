"""Work in steps: a generator that yields where it may be interrupted, and returns what it made."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

Made = TypeVar("Made")


def all_of(steps: Generator[None, None, Made]) -> Made:
    """Take every step at once; what they made.

    >>> def adding(numbers):
    ...     total = 0
    ...     for number in numbers:
    ...         total += number
    ...         yield
    ...     return total
    >>> all_of(adding([1, 2, 3]))
    6
    """
    while True:
        try:
            next(steps)
        except StopIteration as done:
            made: Made = done.value
            return made
