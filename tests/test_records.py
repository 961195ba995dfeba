"""Records refuse what cannot be true."""

import numpy as np
import pytest

from edge.records import Cause, Detections, GateResult, Reason, Verdict, VerdictKind


@pytest.mark.parametrize(("passed", "cause"), [(True, Cause.BLUR), (False, None)])
def test_a_gate_result_passes_or_has_a_cause(passed, cause):
    with pytest.raises(ValueError, match="passes or has a cause"):
        GateResult(passed, cause, 1.0, 1.0, 0.0)


@pytest.mark.parametrize("shapes", [((2, 4), 1, 2), ((2, 4), 2, 1), ((2, 3), 2, 2), ((8,), 2, 2)])
def test_detections_want_matching_shapes(shapes):
    boxes, n, m = shapes
    with pytest.raises(ValueError, match="detections want"):
        Detections(np.zeros(boxes, np.float32), np.zeros(n, np.float32), np.zeros(m, np.int64))


@pytest.mark.parametrize(("kind", "reasons"), [(VerdictKind.OK, (Reason("a", "b"),)), (VerdictKind.NG, ())])
def test_everything_but_ok_says_why(kind, reasons):
    with pytest.raises(ValueError, match="reasons exactly when"):
        Verdict(kind, reasons)


def test_above_keeps_order():
    d = Detections(np.zeros((3, 4), np.float32), np.array([0.9, 0.5, 0.2], np.float32), np.array([0, 1, 2]))
    assert d.above(0.5).class_id.tolist() == [0, 1]
    assert len(Detections.none().above(0.1)) == 0
