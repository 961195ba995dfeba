"""What a bundle states beyond its files: the hardware it is for, what calibrated INT8, on which terms it may be used.

A device reads it before it takes a bundle, a person before using one; the card says it in a paragraph.
"""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.dataset import sha256_file
from tools.errors import ToolError
from tools.records import Record

WEIGHTS = "Apache-2.0, as far as the terms of the data allow"
BEGIN = "**Made for** "
WIDTH = 118


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The arguments of every step that writes a manifest."""
    p.add_argument("--hardware", nargs="+", metavar="NAME",
                   help='architectures, or words of a board\'s model such as "Jetson Orin Nano" '
                        "(default: the architectures that the models were made for)")  # fmt: skip
    p.add_argument("--calibration", type=Path, help="list of images that calibrated INT8, from `calibration`")
    p.add_argument("--licence-weights", default=WEIGHTS, help="terms of the weights (default: %(default)s)")
    p.add_argument("--licence-data", help="terms of the data (default: as the dataset states)")


def stated(
    args: argparse.Namespace,
    artifacts: Sequence[Mapping[str, str]],
    licence: str = "",
    records: Sequence[Record] = (),
) -> dict[str, Any]:
    """The manifest's fields.

    Args:
        artifacts: of the manifest. licence: as the dataset states it. records: those of `quantize` say with which list.

    Raises:
        ToolError: the list of calibration images cannot be read, or is not the one that was used.
    """
    hardware = args.hardware or sorted({a["arch"] for a in artifacts} - {"any"})
    fields: dict[str, Any] = {"hardware": list(hardware)} if hardware else {}
    if args.calibration is not None:
        fields["calibration"] = calibration_of(args.calibration, records)
    data = args.licence_data or licence
    if data:
        fields["licences"] = {"weights": args.licence_weights, "data": data}
    return fields


def calibration_of(path: Path, records: Sequence[Record] = ()) -> dict[str, Any]:
    """SHA-256 of a list of calibration images and how many it names.

    Raises:
        ToolError: it cannot be read, or a record of `quantize` says that another one was used.
    """
    try:
        images = json.loads(path.read_text(encoding="utf-8"))["images"]
        said = {"sha256": sha256_file(path), "images": len(images)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ToolError(f"{path}: cannot be read as a list of calibration images: {error!r}") from error
    for record in records:
        used = dict(record.settings.get("depends") or {}).get("calibration", said["sha256"])
        if record.step == "quantize" and used != said["sha256"]:
            raise ToolError(f"{record.path}: INT8 was calibrated with another list than {path}; name that one")
    return said


def paragraph(fields: Mapping[str, Any]) -> list[str]:
    """What the card says of it, in lines; none where nothing is stated.

    >>> paragraph({"hardware": ["x86_64"], "licences": {"weights": "MIT", "data": "CC0-1.0"}})
    ['**Made for** x86_64. Terms: weights MIT; data CC0-1.0.']
    """
    hardware, calibration, licences = (fields.get(key) for key in ("hardware", "calibration", "licences"))
    if not (hardware or calibration or licences):
        return []
    text = f"{BEGIN}{', '.join(hardware) if hardware else 'any hardware'}."
    if calibration:
        text += f" INT8 was calibrated from a list of {calibration['images']} images, `{calibration['sha256']}`."
    if licences:
        text += f" Terms: weights {licences['weights'].rstrip('.')}; data {licences['data'].rstrip('.')}."
    return textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def into_card(card: str, version: int, fields: Mapping[str, Any]) -> str:
    """A card with another version and this paragraph below its first; everything else stays.

    >>> print(into_card("# Model card: `x` 1\\n\\nFinds holes.\\n\\nMore.\\n", 2, {"hardware": ["x86_64"]}))
    # Model card: `x` 2
    <BLANKLINE>
    Finds holes.
    <BLANKLINE>
    **Made for** x86_64.
    <BLANKLINE>
    More.
    <BLANKLINE>
    """
    card = re.sub(r"(?m)^(# Model card: `[^`]+`) \d+$", rf"\1 {version}", card, count=1)
    blocks = [block for block in card.split("\n\n") if not block.startswith(BEGIN)]
    first = next((i for i, block in enumerate(blocks) if block.lstrip().startswith("# ")), -1)
    lines = paragraph(fields)
    if lines:
        blocks.insert(first + 2, "\n".join(lines))
    return "\n\n".join(blocks)
