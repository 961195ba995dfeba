"""The conservation ledger: triggers == verdicts + losses, at every moment.

The counts are immutable and a trigger enters them together with its outcome, so no state of the ledger is out of
balance, and the counts after a part can be made durable in the same transaction as the part's messages.
"""

from __future__ import annotations

from edge.event import LedgerCounts
from edge.records import Loss, VerdictKind


def empty() -> LedgerCounts:
    """No trigger yet; every verdict and loss is listed, at zero.

    >>> empty().balanced
    True
    """
    return LedgerCounts(triggers=0, verdicts={kind.value: 0 for kind in VerdictKind}, losses={x.value: 0 for x in Loss})


def judged(counts: LedgerCounts, kind: VerdictKind) -> LedgerCounts:
    """One more trigger that ended as a verdict.

    >>> judged(empty(), VerdictKind.OK).verdicts["OK"]
    1
    """
    verdicts = {**counts.verdicts, kind.value: counts.verdicts.get(kind.value, 0) + 1}
    return LedgerCounts(triggers=counts.triggers + 1, verdicts=verdicts, losses=counts.losses)


def lost(counts: LedgerCounts, loss: Loss, n: int = 1) -> LedgerCounts:
    """`n` more triggers that ended as one named loss.

    >>> lost(empty(), Loss.OVERRUN, 3).triggers
    3
    """
    if n < 0:
        raise ValueError(f"a ledger only grows, {n} triggers cannot be lost")
    losses = {**counts.losses, loss.value: counts.losses.get(loss.value, 0) + n}
    return LedgerCounts(triggers=counts.triggers + n, verdicts=counts.verdicts, losses=losses)
