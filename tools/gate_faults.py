"""What goes wrong with a frame, by the causes that the gate names, each with a level that grows with the harm."""

from __future__ import annotations

import numpy as np

from edge.preprocess import Image
from edge.recipe import CLASSIFIED
from tools.errors import ToolError
from tools.physical import Conditions, photograph

Rng = np.random.Generator

# Cause: its levels, mildest first. Their units are pixels of the frame for motion (length of the path) and defocus
# (radius of the disc), stops for the exposure, the share that is hidden, and severity of the dirt.
LADDERS: dict[str, tuple[float, ...]] = {
    "motion": (2.0, 4.0, 6.0, 9.0, 13.0, 19.0, 28.0, 40.0),
    "defocus": (1.0, 1.7, 2.4, 3.4, 4.8, 6.8, 9.6, 14.0),
    "overexposed": (0.4, 0.8, 1.4, 2.1, 3.0, 4.0),
    "underexposed": (0.7, 1.4, 2.2, 3.2, 4.4, 6.0),
    "occluded": (0.03, 0.06, 0.1, 0.15, 0.25, 0.4),
    "dirty_lens": (0.1, 0.2, 0.35, 0.5, 0.7, 1.0),
}
MOST = {"motion": 60.0, "defocus": 24.0, "overexposed": 6.5, "underexposed": 8.0, "occluded": 0.75, "dirty_lens": 1.0}
BENT = 0.3  # of the motions follow a path with a bend

FULL_WELL, JPEG = 5000.0, 92  # of a good camera, through which every picture goes


def conditions(cause: str, level: float, rng: Rng) -> Conditions:
    """The conditions under which a frame has this fault at this level; 0 is a good camera.

    Raises:
        ToolError: a cause that the gate does not name.
    """
    good = {"full_well": FULL_WELL, "jpeg_quality": JPEG}
    if cause not in LADDERS:
        raise ToolError(f"no cause is called {cause!r}; there are {', '.join(CLASSIFIED)}")
    bent = rng.random() < BENT
    if level <= 0:
        return Conditions(**good)
    fault = {
        "motion": {"vibration_px": level} if bent else {"motion_px": level},
        "defocus": {"defocus_px": level},
        "overexposed": {"stops": level},
        "underexposed": {"stops": -level},
        "occluded": {"hidden_share": level},
        "dirty_lens": {"lens_dirt": level},
    }[cause]
    return Conditions(**good, **fault)


def spoil(image: Image, cause: str, level: float, rng: Rng) -> Image:
    """The frame (H, W) or (H, W, 3) uint8 with this fault; level 0 gives it as a good camera takes it.

    >>> grey = np.full((64, 64), 90, np.uint8)
    >>> [int(spoil(grey, "overexposed", level, np.random.default_rng(0)).mean()) for level in (0, 1, 3)]
    [89, 129, 246]
    """
    return photograph(image, conditions(cause, level, rng), rng)
