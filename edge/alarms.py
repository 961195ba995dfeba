"""Which alarms stand. An alarm is told when it begins and when it ends, not again in between."""

from __future__ import annotations

from dataclasses import dataclass, field

from edge.event import Alarm


@dataclass
class AlarmBoard:
    """The alarms of one node by code.

    >>> board = AlarmBoard()
    >>> alarm = Alarm(code="outbox", severity="error", text="disk full", advice="free some space")
    >>> board.begins(alarm), board.begins(alarm), board.ends("outbox"), board.ends("outbox")
    (True, False, True, False)
    """

    standing: dict[str, Alarm] = field(default_factory=dict)

    def begins(self, alarm: Alarm) -> bool:
        """Note the alarm; True when it has to be told: it is new or says something else than before."""
        old = self.standing.get(alarm.code)
        if old is not None and (old.severity, old.text) == (alarm.severity, alarm.text):
            return False
        self.standing[alarm.code] = alarm
        return True

    def ends(self, code: str) -> bool:
        """Take the alarm down; True when it stood."""
        return self.standing.pop(code, None) is not None


@dataclass
class Streaks:
    """Counts refusals in a row by camera: one blurred frame is a retake, a row of them is a fault of the line.

    >>> streaks = Streaks(limit=2)
    >>> streaks.refused("cam1"), streaks.refused("cam1"), streaks.passed("cam1")
    (False, True, True)
    """

    limit: int = 3
    counts: dict[str, int] = field(default_factory=dict)

    def refused(self, camera: str) -> bool:
        """Count one refusal; True when the camera's alarm is due."""
        self.counts[camera] = self.counts.get(camera, 0) + 1
        return self.counts[camera] >= self.limit

    def passed(self, camera: str) -> bool:
        """End the row; True when its alarm was due and is over."""
        return self.counts.pop(camera, 0) >= self.limit
