"""When a bundle in shadow may look at a frame, and what its looks come to."""

from __future__ import annotations

import pytest

from edge.records import VerdictKind
from edge.shadow import MARGIN, Agreement, Rhythm, Shadow, ShadowLimits, compare

MS = 1_000_000
OK, NG, REVIEW, RETAKE = VerdictKind.OK, VerdictKind.NG, VerdictKind.REVIEW, VerdictKind.RETAKE


@pytest.mark.parametrize(
    ("active", "candidate", "found"),
    [
        (OK, OK, Agreement.AGREED),
        (NG, NG, Agreement.AGREED),
        (OK, REVIEW, Agreement.STRICTER),
        (OK, NG, Agreement.STRICTER),
        (NG, OK, Agreement.LAXER),
        (RETAKE, OK, Agreement.LAXER),
        (NG, REVIEW, Agreement.OTHER),
    ],
)
def test_what_matters_is_whether_the_part_passes(active: VerdictKind, candidate: VerdictKind, found: Agreement) -> None:
    assert compare(active, candidate) is found


def test_the_next_part_may_come_as_soon_as_the_quickest_ones_did() -> None:
    rhythm, at = Rhythm(), 0
    assert rhythm.spare_ns(0) == 0, "nothing is known yet"
    for k in range(40):
        rhythm.note(at)
        at += (40 if k % 4 == 0 else 100) * MS
    last = at - 100 * MS
    assert rhythm.spare_ns(last) == 40 * MS and rhythm.spare_ns(last + 30 * MS) == 10 * MS
    assert rhythm.spare_ns(last + 50 * MS) == 0


def test_parts_told_out_of_order_do_not_make_time() -> None:
    rhythm = Rhythm()
    for at in (0, 50, 20, 100):
        rhythm.note(at * MS)
    assert rhythm.spare_ns(100 * MS) == 50 * MS


def shadow(looks: int = 10, disagree_max: float = 0.2, longest_ns: int = 1000) -> Shadow:
    return Shadow(ShadowLimits(looks, disagree_max, longest_ns), began_ns=0)


def test_it_is_over_after_its_looks_or_its_time() -> None:
    seen = shadow()
    for _ in range(9):
        seen.note(Agreement.AGREED, 5)
    seen.came(999)
    assert not seen.over()
    seen.came(1000)
    assert seen.over()
    quick = shadow()
    for _ in range(10):
        assert not quick.over()
        quick.note(Agreement.AGREED, 5)
    assert quick.over()


def test_a_line_that_stands_uses_up_none_of_its_time() -> None:
    night = 8 * 3600 * 10**9
    seen = Shadow(ShadowLimits(10, 0.2, longest_ns=30 * 60 * 10**9), began_ns=0)
    seen.came(night)
    assert not seen.over()
    for second in range(1, 30 * 60):
        seen.came(night + second * 10**9)
    assert seen.over(), "half an hour in which parts came"


def test_cameras_that_run_free_have_a_rhythm_each() -> None:
    rhythm = Rhythm()
    for k in range(10):
        rhythm.note(k * 100 * MS, "a")
        rhythm.note(k * 100 * MS + 200_000, "b")
    assert rhythm.spare_ns(910 * MS) == 90 * MS


def test_it_is_refused_as_soon_as_nothing_to_come_could_make_it_good() -> None:
    seen = shadow(looks=10, disagree_max=0.2)
    for agreement in (Agreement.AGREED, Agreement.AGREED, Agreement.LAXER, Agreement.LAXER):
        seen.note(agreement, 5)
        assert seen.refused() == ""
    seen.note(Agreement.STRICTER, 5)
    why = seen.refused()
    assert "5 frames" in why and "1 stricter, 2 laxer" in why and "trial.disagree_max allows 20%" in why


def test_when_its_time_is_over_the_share_of_what_it_saw_counts() -> None:
    seen = shadow(looks=50, disagree_max=0.2)
    for _ in range(9):
        seen.note(Agreement.LAXER, 5)
    assert seen.refused() == "", "the other 41 could make it good"
    assert "judged 9 differently" in seen.refused(at_end=True)
    few = shadow(looks=50, disagree_max=0.2)
    few.note(Agreement.LAXER, 5)
    assert few.refused(at_end=True) == "", "one frame says nothing"


def test_no_disagreement_may_be_all_that_is_allowed() -> None:
    seen = shadow(disagree_max=0.0)
    for _ in range(4):
        seen.note(Agreement.AGREED, 5)
    assert seen.refused() == ""
    seen.note(Agreement.OTHER, 5)
    assert seen.refused()


def test_a_line_without_time_is_told() -> None:
    seen = shadow()
    for _ in range(7):
        seen.no_time()
    counts = seen.counts()
    assert (counts.no_time, counts.seen, counts.wanted) == (7, 0, 10) and not seen.refused(at_end=True)


def test_a_look_wants_the_longest_of_its_times_and_a_margin() -> None:
    seen = shadow()
    assert seen.need_ns == 0
    for ms in (5, 20, 7):
        seen.note(Agreement.AGREED, ms * MS)
    assert seen.need_ns == int(MARGIN * 20 * MS)
