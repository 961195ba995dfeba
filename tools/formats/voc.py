"""Pascal VOC (host.robots.ox.ac.uk/pascal/VOC): an XML an image; coordinates count pixels from 1."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from tools.errors import DataError
from tools.formats.raw import Problems, RawBox, RawData, RawImage, Skip, pair, take_all


@dataclass
class Element:
    """An XML element that knows its line."""

    tag: str
    line: int
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def all(self, tag: str) -> Iterator[Element]:
        """The children of that tag."""
        return (child for child in self.children if child.tag == tag)

    def value(self, tag: str, path: Path) -> str:
        """The text of the child of that tag.

        Raises:
            DataError: there is none.
        """
        for child in self.all(tag):
            return child.text.strip()
        raise DataError(f"{path}:{self.line}: <{self.tag}> lacks <{tag}>")

    def number(self, tag: str, path: Path) -> float:
        """The child of that tag as a number.

        Raises:
            DataError: there is none, or it is no number.
        """
        text = self.value(tag, path)
        try:
            return float(text)
        except ValueError as error:
            line = next(self.all(tag)).line
            raise DataError(f"{path}:{line}: <{tag}> is {text!r}, expected a number") from error


def parse_xml(path: Path) -> Element:
    """The root element of an XML file, with lines; entities that the file defines are not followed.

    Raises:
        DataError: not XML.
    """
    stack = [Element("", 0)]
    xml = expat.ParserCreate()

    def start(tag: str, attributes: dict[str, str]) -> None:
        element = Element(tag, xml.CurrentLineNumber)
        stack[-1].children.append(element)
        stack.append(element)

    def end(tag: str) -> None:
        stack.pop()

    def characters(text: str) -> None:
        stack[-1].text += text

    def entity(*declaration: object) -> None:
        raise DataError(f"{path}:{xml.CurrentLineNumber}: declares an entity, which no annotation needs")

    xml.StartElementHandler, xml.EndElementHandler, xml.CharacterDataHandler = start, end, characters
    xml.EntityDeclHandler = entity
    try:
        xml.Parse(path.read_bytes(), True)  # bytes: the file says its encoding
    except expat.ExpatError as error:
        raise DataError(f"{path}:{error.lineno}: is not XML: {expat.ErrorString(error.code)}") from error
    return stack[0].children[0]


def read(source: Path, problems: Problems, skip: Skip = take_all) -> RawData:
    """Every image below `source`, with its XML where there is one.

    Raises:
        DataError: no image at all.
    """
    images = []
    for image, label in pair(source, ".xml", problems, skip, _is_label):
        name = image.relative_to(source).as_posix()
        if label is None:
            images.append(RawImage(name, image, None, str(image)))
            continue
        with problems.collect():
            root = parse_xml(label)
            if root.tag != "annotation":
                raise DataError(f"{label}:{root.line}: is no VOC file: begins with <{root.tag}>, not <annotation>")
            images.append(RawImage(name, image, _boxes(root, label, problems), str(label), _size(root, label)))
    return RawData(images)


def _is_label(path: Path) -> bool:
    try:
        return parse_xml(path).tag == "annotation"
    except DataError:
        return False


def _size(root: Element, path: Path) -> tuple[int, int] | None:
    """What <size> says; some tools leave it out or write zeros."""
    for size in root.all("size"):
        width, height = int(size.number("width", path)), int(size.number("height", path))
        return (width, height) if width and height else None
    return None


def _boxes(root: Element, path: Path, problems: Problems) -> tuple[RawBox, ...]:
    boxes = []
    for item in root.all("object"):
        with problems.collect():
            outline = next(item.all("bndbox"), None)
            if outline is None:
                raise DataError(f"{path}:{item.line}: <object> lacks <bndbox>")
            x1, y1, x2, y2 = (outline.number(tag, path) for tag in ("xmin", "ymin", "xmax", "ymax"))
            # Pixel 1 is the first: its left edge is at 0. The last pixel's right edge is its own number.
            boxes.append(RawBox((x1 - 1, y1 - 1, x2, y2), item.value("name", path), f"{path}:{item.line}"))
    return tuple(boxes)
