"""The messages of a Label Studio machine learning backend, for rectangle labels on images.

Label Studio (github.com/HumanSignal/label-studio-ml-backend) sends `POST /setup` with the project's labelling config
(XML) and `POST /predict` with tasks; it wants one prediction a task, boxes in percent of the image. No files and no
network here.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

from edge.records import Detections
from tools.errors import DataError

LARGEST_CONFIG = 200_000  # letters


@dataclass(frozen=True)
class Labelling:
    """What a labelling config says about rectangles.

    Attributes:
        from_name, to_name: names of the RectangleLabels and of the Image it labels. key: where a task has the image.
        label_of: class of the model -> label of the project; a class without a label is not shown.
    """

    from_name: str
    to_name: str
    key: str
    label_of: Mapping[str, str]


def read_config(text: str, classes: tuple[str, ...]) -> Labelling:
    """Read a labelling config.

    A label is found by a class's own name (upper and lower case alike), or by the attribute `predicted_values` of a
    Label, names with commas, as other backends read it too.

    Raises:
        DataError: not XML, or no RectangleLabels on an Image.

    >>> read_config('<View><Image name="i" value="$pcb"/><RectangleLabels name="r" toName="i"><Label value="Open"/>'
    ...             '</RectangleLabels></View>', ("open", "short"))
    Labelling(from_name='r', to_name='i', key='pcb', label_of={'open': 'Open'})
    """
    if len(text) > LARGEST_CONFIG or "<!" in text.replace("<!--", ""):
        raise DataError("label_config: too long, or declares entities; expected a plain Label Studio config")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise DataError(f"label_config: is not XML: {error}") from error
    images = {tag.get("name"): tag.get("value", "") for tag in root.iter("Image")}
    for rectangles in root.iter("RectangleLabels"):
        if rectangles.get("toName") in images:
            to_name = str(rectangles.get("toName"))
            return Labelling(
                str(rectangles.get("name", "label")), to_name, images[to_name].lstrip("$"), _labels(rectangles, classes)
            )
    raise DataError("label_config: has no RectangleLabels whose toName is an Image; this model only draws rectangles")


def _labels(rectangles: ElementTree.Element, classes: tuple[str, ...]) -> dict[str, str]:
    wanted: dict[str, str] = {}
    for label in rectangles.iter("Label"):
        value = label.get("value", "")
        for name in [value, *label.get("predicted_values", "").split(",")]:
            wanted.setdefault(name.strip().lower(), value)
    return {name: wanted[name.lower()] for name in classes if name.lower() in wanted}


def image_of(task: Any, labelling: Labelling) -> str:
    """Where a task says its image is.

    Raises:
        DataError: it does not.
    """
    data = task.get("data") if isinstance(task, dict) else None
    where = data.get(labelling.key) if isinstance(data, dict) else None
    if not isinstance(where, str) or not where:
        raise DataError(f"the task {task_name(task)} has no image under data.{labelling.key}")
    return where


def task_name(task: Any) -> str:
    """What to call a task in a message."""
    return repr(task.get("id"))[:40] if isinstance(task, dict) else "that is no object"


def decode_data(text: str) -> bytes:
    """The bytes of a base64 text or of a `data:` URI.

    Raises:
        DataError: neither.

    >>> decode_data("data:image/png;base64,aGk="), decode_data("aGk=")
    (b'hi', b'hi')
    """
    if text.startswith("data:"):
        head, _, text = text.partition(",")
        if not head.endswith(";base64"):
            raise DataError("image: a data URI has to be base64")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"image: is not base64: {error}") from error


def path_of(where: str) -> str:
    """The path below the served folder that a task's image names: of local storage, an upload, or plain.

    Raises:
        DataError: it is on another machine.

    >>> path_of("/data/local-files/?d=night/1%20a.png"), path_of("/data/upload/3/x.jpg"), path_of("night/2.png")
    ('night/1 a.png', 'upload/3/x.jpg', 'night/2.png')
    """
    parts = urlsplit(where)
    if parts.scheme or parts.netloc:
        raise DataError(
            f"{where[:100]}: this server fetches nothing; serve local files (--images) or send the image as a data URI"
        )
    if parts.path.rstrip("/").endswith("/data/local-files"):
        return parse_qs(parts.query).get("d", [""])[0]
    return unquote(parts.path).removeprefix("/data/").lstrip("/")


def prediction(
    found: Detections, size: tuple[int, int], classes: tuple[str, ...], labelling: Labelling, version: str
) -> dict[str, Any]:
    """One task's prediction; its score is that of its least sure box, so that sorting by it brings doubt to the top.

    Args:
        size: (width, height) of the image in pixels.
    """
    width, height = size
    regions = []
    for i, (box, confidence, kind) in enumerate(
        zip(found.xyxy.tolist(), found.confidence.tolist(), found.class_id.tolist(), strict=True)
    ):
        label = labelling.label_of.get(classes[kind])
        if label is None:
            continue
        x1, y1, x2, y2 = box
        shares = {"x": x1 / width, "y": y1 / height, "width": (x2 - x1) / width, "height": (y2 - y1) / height}
        percent = {name: round(100 * share, 4) for name, share in shares.items()}
        regions.append(
            {
                "id": f"box{i}",
                "from_name": labelling.from_name,
                "to_name": labelling.to_name,
                "type": "rectanglelabels",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": {**percent, "rotation": 0, "rectanglelabels": [label]},
                "score": round(confidence, 4),
            }
        )
    return {"model_version": version, "score": min((r["score"] for r in regions), default=0.0), "result": regions}
