"""The frames of one part become one verdict. A part passes only when every camera that must look said OK."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.fuse import MOST_REASONS, SEVERITY, fuse, looking
from edge.recipe import FusionRecipe
from edge.records import Detections, GateResult, Inspection, Reason, Scores, Verdict, VerdictKind
from tests.fakes import flat, frame

OK, REVIEW, RETAKE, NG = SEVERITY
CODE = {NG: "defect.short", REVIEW: "doubt.short", RETAKE: "gate.motion"}
GATE = GateResult(True, None, 1.0, 1.0, 0.0)
CAMERAS = ["top", "side", "back"]


def saw(kind: VerdictKind, camera: str = "top", reasons: int = 1) -> Inspection:
    """A judged frame; the gate's own words do not matter here."""
    why = () if kind is OK else tuple(Reason(CODE[kind], f"{kind.value} {k}") for k in range(reasons))
    return Inspection(frame(flat(), camera=camera), GATE, Detections.none(), Scores(), Verdict(kind, why))


def fused(
    kinds: Mapping[str, VerdictKind],
    missing: Mapping[str, str] | None = None,
    optional: tuple[str, ...] = (),
    cameras: tuple[str, ...] = (),
) -> Verdict | None:
    inspections = {camera: saw(kind, camera) for camera, kind in kinds.items()}
    recipe = FusionRecipe(cameras=list(cameras), optional=list(optional))
    return fuse(inspections, missing or {}, recipe, CAMERAS)


ALL_OK = dict.fromkeys(CAMERAS, OK)


@pytest.mark.parametrize(
    ("why", "kinds", "missing", "optional", "cameras", "expected"),
    [
        ("all said OK", ALL_OK, {}, (), (), "OK"),
        ("one found a defect", {**ALL_OK, "side": NG}, {}, (), (), "NG"),
        ("a doubt", {**ALL_OK, "back": REVIEW}, {}, (), (), "REVIEW"),
        ("a refused frame over a doubt", {"top": REVIEW, "side": RETAKE, "back": OK}, {}, (), (), "RETAKE"),
        ("a defect over a refused frame", {"top": RETAKE, "side": NG, "back": REVIEW}, {}, (), (), "NG"),
        ("a camera that must look did not", {"top": OK, "side": OK}, {"back": "cable"}, (), (), "RETAKE"),
        ("nor said why", {"top": OK, "side": OK}, {}, (), (), "RETAKE"),
        ("a doubt does not go before that", {"top": REVIEW, "side": OK}, {"back": "cable"}, (), (), "RETAKE"),
        ("a defect stays one without it", {"top": NG, "side": OK}, {"back": "cable"}, (), (), "NG"),
        ("it is optional", {"top": OK, "side": OK}, {"back": "cable"}, ("back",), (), "OK"),
        ("optional, but it found a defect", {**ALL_OK, "back": NG}, {}, ("back",), (), "NG"),
        ("optional, and its frame was refused: it looked", {**ALL_OK, "back": RETAKE}, {}, ("back",), (), "RETAKE"),
        ("it does not look at this product", {"top": OK, "side": OK}, {}, (), ("side", "top"), "OK"),
        ("it should not look and found a defect", {**ALL_OK, "back": NG}, {}, (), ("side", "top"), "NG"),
        ("the recipe wants one that the station lacks", ALL_OK, {}, (), ("top", "roof"), "RETAKE"),
        ("judged and missing at once: the worse of it", ALL_OK, {"top": "late"}, (), (), "RETAKE"),
        ("no camera gave a frame", {}, {"top": "a", "side": "b", "back": "c"}, (), (), None),
        ("none gave one, and all are optional", {}, {}, ("top", "side", "back"), (), None),
    ],
)
def test_the_worst_rules(
    why: str,
    kinds: dict[str, VerdictKind],
    missing: dict[str, str],
    optional: tuple[str, ...],
    cameras: tuple[str, ...],
    expected: str | None,
) -> None:
    verdict = fused(kinds, missing, optional, cameras)
    assert (verdict.kind.value if verdict else None) == expected, why


def test_reasons_are_told_worst_first_with_their_camera() -> None:
    inspections = {"back": saw(NG, "back", 2), "side": saw(NG, "side", 2), "top": saw(REVIEW)}
    verdict = fuse(inspections, {}, FusionRecipe(), CAMERAS)
    assert verdict is not None
    assert [(r.code, r.text) for r in verdict.reasons] == [
        ("defect.short", "side: NG 0"),
        ("defect.short", "back: NG 0"),
        ("defect.short", "side: NG 1"),
        ("defect.short", "back: NG 1"),
        ("doubt.short", "top: REVIEW 0"),
    ]


def test_a_missing_camera_is_named_with_why() -> None:
    verdict = fused({"top": REVIEW, "side": NG}, {"back": "no frame within 25.0 ms"})
    assert verdict is not None
    assert [(r.code, r.text) for r in verdict.reasons] == [
        ("defect.short", "side: NG 0"),
        ("no_frame", "back: no frame within 25.0 ms"),
        ("doubt.short", "top: REVIEW 0"),
    ]
    unsaid = fused({"top": OK, "side": OK})
    assert unsaid is not None and unsaid.reasons == (Reason("no_frame", "back: no frame of it was judged"),)


@pytest.mark.parametrize("kind", SEVERITY)
def test_one_camera_alone_is_told_as_it_is(kind: VerdictKind) -> None:
    judged = saw(kind, reasons=3)
    assert fuse({"top": judged}, {}, FusionRecipe(), ["top"]) == judged.verdict


def test_reasons_are_bounded_and_every_camera_is_heard() -> None:
    inspections = {camera: saw(NG, camera, 100) for camera in CAMERAS}
    verdict = fuse(inspections, {}, FusionRecipe(), CAMERAS)
    assert verdict is not None and len(verdict.reasons) == MOST_REASONS
    assert [r.text for r in verdict.reasons[:3]] == ["top: NG 0", "side: NG 0", "back: NG 0"]
    assert verdict.reasons[-1] == Reason("more", "269 more reasons")


def test_the_cameras_that_look() -> None:
    assert looking(FusionRecipe(), CAMERAS) == ("top", "side", "back")
    assert looking(FusionRecipe(cameras=["back", "top"]), CAMERAS) == ("top", "back"), "in the config's order"
    assert looking(FusionRecipe(cameras=["roof", "top"]), CAMERAS) == ("top", "roof")


kinds_of = st.dictionaries(st.sampled_from([*CAMERAS, "stray"]), st.sampled_from(SEVERITY))
missing_of = st.dictionaries(st.sampled_from(CAMERAS), st.just("cable"))
cameras_of = st.lists(st.sampled_from(CAMERAS), unique=True).map(tuple)


def rank(verdict: Verdict | None) -> int:
    assert verdict is not None
    return SEVERITY.index(verdict.kind)


@given(kinds=kinds_of, missing=missing_of, optional=cameras_of, cameras=cameras_of)
def test_ok_only_when_every_camera_that_must_look_said_so(
    kinds: dict[str, VerdictKind], missing: dict[str, str], optional: tuple[str, ...], cameras: tuple[str, ...]
) -> None:
    verdict = fused(kinds, missing, optional, cameras)
    assert (verdict is None) == (not kinds)
    if verdict is None:
        return
    must = [camera for camera in cameras or CAMERAS if camera not in optional]
    all_said_ok = all(kinds.get(camera) is OK and camera not in missing for camera in must)
    assert (verdict.kind is OK) == (all_said_ok and all(kind is OK for kind in kinds.values()))
    assert rank(verdict) >= max(SEVERITY.index(kind) for kind in kinds.values())


@given(
    kinds=kinds_of.filter(bool),
    missing=missing_of,
    optional=cameras_of,
    cameras=cameras_of,
    camera=st.sampled_from([*CAMERAS, "stray"]),
    kind=st.sampled_from(SEVERITY),
)
def test_more_frames_never_make_it_better_but_for_the_one_that_was_lacking(
    kinds: dict[str, VerdictKind],
    missing: dict[str, str],
    optional: tuple[str, ...],
    cameras: tuple[str, ...],
    camera: str,
    kind: VerdictKind,
) -> None:
    before = fused(kinds, missing, optional, cameras)
    worse = {**kinds, camera: max(kind, kinds.get(camera, OK), key=SEVERITY.index)}
    after = fused(worse, missing, optional, cameras)
    lacked = camera in (cameras or CAMERAS) and camera not in optional and camera not in kinds
    if lacked and camera not in missing:
        assert rank(after) >= max(SEVERITY.index(k) for k in worse.values())
    else:
        assert rank(after) >= rank(before)


@given(kinds=kinds_of.filter(bool), missing=missing_of, optional=cameras_of, seed=st.integers(0, 23))
def test_the_order_of_arrival_does_not_matter(
    kinds: dict[str, VerdictKind], missing: dict[str, str], optional: tuple[str, ...], seed: int
) -> None:
    orders = list(itertools.permutations(kinds))
    shuffled = {camera: kinds[camera] for camera in orders[seed % len(orders)]}
    assert fused(shuffled, missing, optional) == fused(kinds, missing, optional)
