"""A process that appends parts as fast as it can, to be killed: prints each part and its hash once it is durable."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from edge.clock import SystemClock
from edge.config import GenealogySettings
from edge.genealogy import Genealogy
from edge.part import Part
from edge.records import Loss, Reason, Verdict, VerdictKind


def part(number: int, settled_ts: float) -> Part:
    """A part without frames: every fifth is lost, every third is NG."""
    if number % 5 == 0:
        return Part(number, "pcb", "ab" * 32, None, (), None, Loss.DEADLINE, settled_ts, detail="no time")
    verdict = Verdict(VerdictKind.NG, (Reason("defect.short", "short 0.93"),)) if number % 3 == 0 else None
    return Part(number, "pcb", "ab" * 32, None, (), verdict or Verdict(VerdictKind.OK), None, settled_ts)


def main(path: Path, boot: str) -> None:
    """Go on where the last one was killed; some parts get a row more, and old rows are let go."""
    rows = Genealogy(path, SystemClock(), boot, GenealogySettings(keep_days=1e-6))
    number = rows.last_part()
    while True:
        number += 1
        digest = rows.append_part(part(number, time.time()), f"evidence/{number}")
        sys.stdout.write(f"{number} {digest}\n")
        sys.stdout.flush()
        if number % 4 == 0:
            rows.append("override", {"part": number, "operator": "kim", "verdict": "OK", "reason": "looked"})
        if boot.endswith("prune") and number % 50 == 0:
            rows.prune(time.time())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
