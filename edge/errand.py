"""Something that waits for the disk or for a child process, in a thread beside the inspection."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Made = TypeVar("Made")


class Errand(Generic[Made]):
    """Runs one call in a thread of its own from the start on; what it does has time limits of its own.

    >>> errand = Errand("sum", lambda: 1 + 2)
    >>> while not errand.done():
    ...     pass
    >>> errand.result()
    3
    """

    def __init__(self, name: str, call: Callable[[], Made]) -> None:
        self._call = call
        self._made: list[Made] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._made.append(self._call())
        except BaseException as error:  # it is raised where the result is asked for
            self._error = error

    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return not self._thread.is_alive()

    def result(self) -> Made:
        """What the call returned; what it raised is raised here. Only when it is done."""
        if self._error is not None:
            raise self._error
        return self._made[0]
