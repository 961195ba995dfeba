"""From the frames of one part to one verdict: the worst rules, and a camera that did not look is no OK."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edge.recipe import FusionRecipe
from edge.records import Inspection, Reason, Verdict, VerdictKind

# What rules over what, best first. NG over RETAKE: a defect that was seen stays one, whatever another camera missed.
SEVERITY = (VerdictKind.OK, VerdictKind.REVIEW, VerdictKind.RETAKE, VerdictKind.NG)

MOST_REASONS = 32  # of one part; how many more there were is told as the last one

UNEXPLAINED = "no frame of it was judged"


def looking(fusion: FusionRecipe, cameras: Sequence[str]) -> tuple[str, ...]:
    """The cameras of the station that look at a part of this recipe, in the order of the config.

    One that the recipe names and the station does not have comes last: it can never look, so no part passes.

    >>> looking(FusionRecipe(cameras=["side", "top"]), ["top", "bottom", "side"])
    ('top', 'side')
    """
    if not fusion.cameras:
        return tuple(cameras)
    unknown = [camera for camera in fusion.cameras if camera not in cameras]
    return (*(camera for camera in cameras if camera in fusion.cameras), *unknown)


def fuse(
    inspections: Mapping[str, Inspection], missing: Mapping[str, str], fusion: FusionRecipe, cameras: Sequence[str]
) -> Verdict | None:
    """The worst of what the cameras say: NG over RETAKE over REVIEW over OK.

    A camera that looks at the part, is not optional and gave no frame turns OK and REVIEW into RETAKE. Reasons are
    told worst first, and of the same weight each camera's first before any camera's second; with more than one camera
    their text begins with the camera's id. The codes stay as they are.

    Args:
        inspections: camera -> its frame of the part, judged.
        missing: camera -> why no frame of it was judged. One that is in neither is missing, too.
        fusion: of the part's recipe.
        cameras: all of the station, in the order of the config.

    Returns:
        None when no camera gave a frame: there is no verdict, and the station names the loss.

    >>> fuse({}, {"top": "no frame within 50.0 ms"}, FusionRecipe(), ["top"]) is None
    True
    """
    if not inspections:
        return None
    wanted = looking(fusion, cameras)
    order = [*wanted, *sorted(set(inspections) - set(wanted))]
    ranked: list[tuple[int, int, int, Reason]] = []  # severity, rank within its camera, place of the camera
    worst = 0
    for place, camera in enumerate(order):
        verdict = _of_camera(camera, inspections, missing, fusion, camera in wanted)
        severity = SEVERITY.index(verdict.kind)
        worst = max(worst, severity)
        ranked += [
            (-severity, rank, place, _named(camera, reason, len(order) > 1))
            for rank, reason in enumerate(verdict.reasons)
        ]
    reasons = [reason for _, _, _, reason in sorted(ranked, key=lambda entry: entry[:3])]
    return Verdict(SEVERITY[worst], tuple(_bounded(reasons)))


def _of_camera(
    camera: str, inspections: Mapping[str, Inspection], missing: Mapping[str, str], fusion: FusionRecipe, wanted: bool
) -> Verdict:
    """What one camera adds: its frame's verdict, and RETAKE when it should have looked and did not."""
    judged = inspections.get(camera)
    required = wanted and camera not in fusion.optional
    if required and (judged is None or camera in missing):
        lack = Reason("no_frame", missing.get(camera, UNEXPLAINED))
        if judged is None or SEVERITY.index(judged.verdict.kind) < SEVERITY.index(VerdictKind.RETAKE):
            return Verdict(VerdictKind.RETAKE, (lack, *(judged.verdict.reasons if judged is not None else ())))
        return Verdict(judged.verdict.kind, (*judged.verdict.reasons, lack))
    return judged.verdict if judged is not None else Verdict(VerdictKind.OK)


def _named(camera: str, reason: Reason, several: bool) -> Reason:
    # The lack of a frame names its camera in any case: it is the camera that it is about.
    named = several or reason.code == "no_frame"
    return Reason(reason.code, f"{camera}: {reason.text}") if named else reason


def _bounded(reasons: Sequence[Reason]) -> Sequence[Reason]:
    if len(reasons) <= MOST_REASONS:
        return reasons
    more = len(reasons) - (MOST_REASONS - 1)
    return (*reasons[: MOST_REASONS - 1], Reason("more", f"{more} more reasons"))
