"""The ledger balances after any history, and never shrinks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge import ledger
from edge.records import Loss, VerdictKind

STEPS = st.lists(
    st.one_of(st.sampled_from(VerdictKind), st.tuples(st.sampled_from(Loss), st.integers(0, 50))), max_size=60
)


@given(STEPS)
def test_balances_after_every_step(steps):
    counts, expected = ledger.empty(), 0
    for step in steps:
        if isinstance(step, VerdictKind):
            counts, expected = ledger.judged(counts, step), expected + 1
        else:
            counts, expected = ledger.lost(counts, *step), expected + step[1]
        assert counts.balanced
        assert counts.triggers == expected


def test_history_is_not_changed_by_what_follows():
    before = ledger.judged(ledger.empty(), VerdictKind.OK)
    ledger.lost(before, Loss.OVERRUN, 4)
    assert before.triggers == 1 and before.losses["overrun"] == 0


def test_losses_cannot_be_taken_back():
    with pytest.raises(ValueError, match="only grows"):
        ledger.lost(ledger.empty(), Loss.OVERRUN, -1)


def test_every_name_is_listed_from_the_start():
    counts = ledger.empty()
    assert set(counts.verdicts) == {"OK", "NG", "REVIEW", "RETAKE"}
    assert set(counts.losses) == {"overrun", "capture_fault", "deadline", "shutdown", "processing_fault"}
