"""A process that adds messages as fast as it can, to be killed: prints each seq once it is committed."""

from __future__ import annotations

import sys
from pathlib import Path

from edge import ledger
from edge.clock import SystemClock
from edge.event import Alarm
from edge.outbox import Draft, Kind, Outbox
from edge.records import VerdictKind


def main(path: Path, boot: str) -> None:
    """Every part gives one to three messages, and every seventh removes the oldest five."""
    box = Outbox(path, 10_000_000, boot, SystemClock())
    counts, part = box.ledger()
    counts = counts or ledger.empty()
    message = Alarm(code="c", severity="warning", text="x" * 500, advice="")
    while True:
        part += 1
        counts = ledger.judged(counts, VerdictKind.OK)
        drafts = [Draft(f"t/{part}", Kind.RESULT, False, message)] * (1 + part % 3)
        seqs = box.add(drafts, counts, part)
        sys.stdout.write(f"{part} {seqs[-1]}\n")
        sys.stdout.flush()
        if part % 7 == 0:
            box.remove([row.seq for row in box.pending(0, 5)])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
