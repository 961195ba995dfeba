"""The manifest of a model bundle: what the bundle is for, what is in it, and the SHA-256 of each of its files.

A bundle is a folder with `manifest.json`, the models, a recipe and a model card. What the manifest does not list
is not part of the bundle.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypedDict

import msgspec
from msgspec import Meta

from edge import __version__, settings
from edge.errors import BundleError
from edge.settings import Rule

MANIFEST: Final = "manifest.json"
FORMAT: Final = 3  # 1: without features and judges. 2: without hardware, calibration and licences. Both are still read
LARGEST_MANIFEST_BYTES: Final = 1 << 20

# Relative, one level of plain names after another: neither `..` nor an absolute path can be written this way.
_LEVEL = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}"
_PATH = "a path inside the bundle, of letters, digits, `.`, `-` and `_`, such as `model/int8.nb`"
FilePath = Annotated[str, Meta(pattern=rf"^{_LEVEL}(/{_LEVEL})*\Z", description=_PATH)]
ProductName = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z", description="1 to 64 letters, digits, `-` or `_`")
]
ClassName = Annotated[str, Meta(pattern=r"^[^\x00-\x1f]{1,64}\Z", description="a name of 1 to 64 characters")]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z", description="a SHA-256 as 64 hexadecimal digits")]
EdgeVersion = Annotated[str, Meta(pattern=r"^\d{1,9}\.\d{1,9}\.\d{1,9}\Z", description="a version such as `0.1.0`")]
Moment = Annotated[
    str, Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\Z", description="a time such as `2026-01-31T12:00:00Z`")
]


# What `edge.bundle.choice.hardware_problem` compares with a device.
_HARDWARE = "an architecture (`x86_64`, `aarch64`) or words of a board's model, such as `Raspberry Pi 5`"
Hardware = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][ -~]{0,63}\Z", description=_HARDWARE)]
Terms = Annotated[
    str, Meta(pattern=r"^[^\x00-\x1f]{1,500}\Z", description="terms of use, one line of up to 500 characters")
]
Side = Annotated[int, Meta(ge=1, le=8192)]
JudgeName = Literal["gate", "anomaly", "drift"]


class Input(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The input contract of every model in the bundle; as `edge.preprocess.InputSpec`."""

    width: Annotated[int, Meta(ge=1, le=8192)]
    height: Annotated[int, Meta(ge=1, le=8192)]
    channels: Literal[1, 3]
    scale: Annotated[float, Meta(gt=0, le=1000)] = 1 / 255
    mean: Annotated[float, Meta(ge=0, le=255)] = 0.0


class Artifact(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One model file and what it runs on."""

    file: FilePath
    runtime: Literal["paddlelite", "onnxruntime"]
    arch: Literal["x86_64", "aarch64", "any"]
    precision: Literal["int8", "fp32"]
    made_with: Annotated[str, Meta(min_length=1, description="a tool and its version, such as `paddlelite 2.13rc0`")]


class Features(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One output more of every detector in the bundle, its last: what its outputs are computed from."""

    channels: Annotated[int, Meta(ge=1, le=4096)]
    stride: Annotated[int, Meta(ge=1, le=1024)]


class Judge(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A small model beside the detector.

    Attributes:
        artifacts: its model in every form, as the detector's.
        shape: channels, height and width of its input.
        settings: a file of the bundle, JSON, that the judge's own module reads.
    """

    artifacts: Annotated[list[Artifact], Meta(min_length=1)]
    shape: tuple[Side, Side, Side]
    settings: FilePath


class Calibration(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What INT8 was calibrated with.

    Attributes:
        sha256: of the list of images, each with a SHA-256 of its own, that is kept where the bundle was made.
        images: how many are listed.
    """

    sha256: Sha256
    images: Annotated[int, Meta(ge=1)]


class Licences(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """On which terms the bundle may be used: those of its weights, and those of the data that they come from."""

    weights: Terms
    data: Terms


class Manifest(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What a bundle says of itself.

    Attributes:
        format: version of this structure.
        version: counts the bundles of one product, from 1.
        created: when it was built, UTC.
        min_edge: the oldest release of this package that can run it.
        hardware: what it was made for, any one of these: architectures, or words of a board's model; none: anything.
        classes: class names by class id; none for a product of which only good parts are known.
        strides: input pixels a cell of each output level, in the order of the model's outputs; none without classes.
        features: what the detector gives beside its boxes, for the anomaly judge and the drift monitor.
        judges: the models beside the detector: the gate's classifier, the anomaly judge, the drift autoencoder.
        recipe, card: files of the bundle: its own recipe, its model card.
        golden: what the FP32 reference finds on the bundle's golden samples; `read_golden` reads it.
        passport: how far the models of the bundle agree with each other, as measured where they were made.
        calibration: what its INT8 models were calibrated with; None: not known.
        licences: on which terms it may be used; None: not stated.
        figures: measured accuracy and speed by name, as the card explains them.
        files: SHA-256 of every file but this manifest.
    """

    format: Annotated[int, Meta(ge=1)] = FORMAT
    product: ProductName
    version: Annotated[int, Meta(ge=1, le=10**9)]
    created: Moment
    min_edge: EdgeVersion
    hardware: Annotated[list[Hardware], Meta(max_length=32)] = []
    classes: Annotated[list[ClassName], Meta(max_length=1000)]
    input: Input
    strides: Annotated[list[Annotated[int, Meta(ge=1, le=1024)]], Meta(max_length=16)]
    features: Features | None = None
    judges: dict[JudgeName, Judge] = {}
    artifacts: Annotated[list[Artifact], Meta(min_length=1)]
    recipe: FilePath = "recipe.toml"
    card: FilePath = "CARD.md"
    golden: FilePath | None = None
    passport: FilePath | None = None
    calibration: Calibration | None = None
    licences: Licences | None = None
    figures: dict[str, float] = {}
    files: dict[FilePath, Sha256]


class GoldenBox(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One box on a golden sample, in pixels of the image; a confidence of 1 says that it was drawn there."""

    xyxy: tuple[float, float, float, float]
    class_name: ClassName
    confidence: Annotated[float, Meta(ge=0, le=1)] = 1.0


class GoldenSample(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One golden sample.

    Attributes:
        file: the image, a file of the bundle.
        tensor_sha256: of the bytes of the tensor (float32, C order) that `edge.preprocess` makes of it: the same on
            every device, or the device decodes or scales images in another way.
        verdict: of the reference, by the bundle's recipe.
        detections: of the reference, most confident first.
        truths: what was drawn on the image, where that is known.
    """

    file: FilePath
    tensor_sha256: Sha256
    verdict: Literal["OK", "NG", "REVIEW", "RETAKE"]
    detections: list[GoldenBox]
    truths: list[GoldenBox] = []


class Golden(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The golden set: images that this project made itself, and what the reference finds on them.

    Attributes:
        reference: what gave the expectation, such as `detector.onnx`.
        least_confidence: detections at least so sure are listed.
    """

    format: Annotated[int, Meta(ge=1, le=1)] = 1
    reference: Annotated[str, Meta(min_length=1)]
    least_confidence: Annotated[float, Meta(gt=0, lt=1)]
    samples: Annotated[list[GoldenSample], Meta(min_length=1)]


def _unique_classes(classes: Sequence[str]) -> str | None:
    twice = sorted({name for name in classes if classes.count(name) > 1})
    return f"classes: {', '.join(twice)} is listed more than once" if twice else None


def _all_listed(artifacts: Any, judges: Any, files: Mapping[str, str], *others: str | None) -> str | None:
    judged = [judge for judge in judges.values() if isinstance(judge, Mapping)] if isinstance(judges, Mapping) else []
    lists = [some for some in (artifacts, *(judge.get("artifacts") for judge in judged)) if isinstance(some, list)]
    models = [a.get("file") for some in lists for a in some if isinstance(a, Mapping)]
    settings = [judge.get("settings") for judge in judged]
    lacking = sorted({name for name in (*models, *settings, *others) if isinstance(name, str) and name not in files})
    return f"files: {', '.join(lacking)} is part of the bundle but has no SHA-256 here" if lacking else None


def _something_to_look_for(classes: Sequence[str], strides: Sequence[int], features: Any, judges: Any) -> str | None:
    if bool(classes) != bool(strides):
        return f"classes and strides belong together: there are {len(classes)} classes and {len(strides)} strides"
    if not classes and "anomaly" not in judges:
        return "classes: none, and there is no anomaly judge: nothing would ever be found"
    if "anomaly" in judges and features is None:
        return "judges.anomaly reads the detector's features, and `features` does not say that there are any"
    return None


def _anomaly_reads_features(judges: Any, features: Any, size: Any) -> str | None:
    """The anomaly judge takes what the detector gives, cell by cell."""
    judge = judges.get("anomaly") if isinstance(judges, Mapping) else None
    if not isinstance(judge, Mapping) or not isinstance(features, Mapping) or not isinstance(size, Mapping):
        return None
    numbers = [features.get("channels"), features.get("stride"), size.get("height"), size.get("width")]
    if not all(isinstance(number, int) and number > 0 for number in numbers):
        return None
    channels, stride, height, width = (int(number or 0) for number in numbers)
    given, taken = [channels, height // stride, width // stride], list(judge.get("shape") or ())
    return None if taken == given else f"judges.anomaly: takes {taken}, and the detector's features are {given}"


def _input_fits_strides(size: Any, strides: Sequence[int]) -> str | None:
    if not isinstance(size, Mapping) or not all(isinstance(size.get(side), int) for side in ("width", "height")):
        return None
    bad = [stride for stride in strides if stride > 0 and (size["width"] % stride or size["height"] % stride)]
    return f"strides: {bad[0]} does not divide the input {size['width']}x{size['height']}" if bad else None


_RULES: Final[settings.Rules] = {
    Manifest: (
        Rule(("classes",), _unique_classes),
        Rule(("artifacts", "judges", "files", "recipe", "card", "golden", "passport"), _all_listed),
        Rule(("classes", "strides", "features", "judges"), _something_to_look_for),
        Rule(("judges", "features", "input"), _anomaly_reads_features),
        Rule(("input", "strides"), _input_fits_strides),
        Rule(("files",), lambda files: f"files: {MANIFEST} cannot hold its own SHA-256" if MANIFEST in files else None),
    )
}


def read(folder: Path) -> Manifest:
    """Read a bundle's manifest and check every file against it.

    Raises:
        BundleError: no bundle there, a manifest that is wrong or too new, a file missing, altered or not inside
            the folder. Every problem of the manifest, or else of the files, is named.
    """
    manifest = read_unverified(folder)
    problems = list(_file_problems(folder, manifest))
    if problems:
        raise BundleError(listed(f"the bundle {folder} is not as it was built; copy or build it again", problems))
    return manifest


def read_unverified(folder: Path) -> Manifest:
    """The manifest alone; the files that it lists are not looked at.

    Raises:
        BundleError: as `read`, but for the files.
    """
    data = _read_json(folder)
    known = data.get("format", FORMAT)
    if isinstance(known, int) and known > FORMAT:
        raise BundleError(f"the bundle {folder} has format {known}, this edge knows up to {FORMAT}: update edge")
    problems = settings.find_problems(data, Manifest, _RULES)
    if problems:
        raise BundleError(listed(f"the manifest {folder / MANIFEST} cannot be used", problems))
    manifest = msgspec.convert(data, Manifest)
    if _numbers(manifest.min_edge) > _numbers(__version__):
        raise BundleError(
            f"the bundle {folder} needs edge {manifest.min_edge} or newer, this is {__version__}: update edge"
        )
    return manifest


def read_golden(folder: Path, manifest: Manifest) -> Golden:
    """The golden set of a bundle that was read by `read`.

    Raises:
        BundleError: the bundle has none, or one that cannot be used: a sample that is no file of the bundle, a class
            that the bundle does not know.
    """
    if manifest.golden is None:
        raise BundleError(f"the bundle {folder} has no golden samples: make it again with `tools make_bundle`")
    path = folder / manifest.golden
    try:
        golden = msgspec.json.decode(path.read_bytes(), type=Golden)
    except OSError as error:
        raise BundleError(f"the golden samples {path} cannot be read: {error.strerror or error}") from error
    except msgspec.DecodeError as error:
        raise BundleError(f"the golden samples {path} cannot be used: {error}") from error
    for sample in golden.samples:
        if sample.file not in manifest.files:
            raise BundleError(f"the golden samples {path} name {sample.file}, which is no file of the bundle")
        unknown = {box.class_name for box in (*sample.detections, *sample.truths)} - set(manifest.classes)
        if unknown:
            raise BundleError(f"{path}: {sample.file}: {sorted(unknown)[0]} is no class of this bundle")
    return golden


def _read_json(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        if not folder.is_dir():
            raise BundleError(f"there is no bundle at {folder}: it is not a folder")
        if path.is_symlink() or not path.is_file():
            raise BundleError(f"{folder} is not a bundle: it has no file {MANIFEST}")
        with path.open("rb") as file:
            data = msgspec.json.decode(file.read(LARGEST_MANIFEST_BYTES))
    except OSError as error:
        raise BundleError(f"the bundle {folder} cannot be read: {error.strerror or error}") from error
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise BundleError(f"the manifest {path} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise BundleError(f"the manifest {path} is not a JSON object")
    return data


def _file_problems(folder: Path, manifest: Manifest) -> Iterator[str]:
    for name, expected in sorted(manifest.files.items()):
        path = folder / name
        try:
            if link := _link_on_the_way(folder, name):
                yield f"{name}: {link} is a link; a bundle holds its files itself"
            elif not path.exists():
                yield f"{name}: missing"
            elif not stat.S_ISREG(path.stat().st_mode):
                yield f"{name}: not a file"
            elif (found := sha256_file(path)) != expected:
                yield f"{name}: altered: its SHA-256 is {found[:12]}..., the manifest says {expected[:12]}..."
        except OSError as error:
            yield f"{name}: cannot be read: {error.strerror or error}"


def _link_on_the_way(folder: Path, name: str) -> str | None:
    """The first part of a file's path below the folder that is a symbolic link."""
    path = folder
    for level in Path(name).parts:
        path = path / level
        if path.is_symlink():
            return str(path.relative_to(folder))
    return None


def sha256_file(path: Path) -> str:
    """SHA-256 of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def digest(manifest: Manifest) -> str:
    """SHA-256 over the manifest in a canonical form: names the bundle and, through its hashes, every file in it."""
    return hashlib.sha256(msgspec.json.encode(_said(manifest), order="sorted")).hexdigest()


def _said(manifest: Manifest) -> dict[str, Any]:
    """The manifest as plain data, without what it says nothing of: the digest of an older bundle stays what it was."""
    said = {key: value for key, value in msgspec.to_builtins(manifest).items() if value is not None}
    return said if manifest.hardware else {key: value for key, value in said.items() if key != "hardware"}


class Fields(TypedDict, total=False):
    """What a builder says of a bundle; as in `Manifest`. What has a default there, and `created`, may be left out."""

    product: str
    version: int
    created: str
    min_edge: str
    hardware: list[str]
    classes: list[str]
    input: dict[str, Any]
    strides: list[int]
    features: dict[str, Any]
    judges: dict[str, Any]
    artifacts: list[dict[str, Any]]
    recipe: str
    card: str
    golden: str
    passport: str
    calibration: dict[str, Any]
    licences: dict[str, str]
    figures: dict[str, float]


def build(folder: Path, fields: Fields) -> Manifest:
    """Hash every file in the folder, write its manifest, and read the finished bundle back.

    Files whose names begin with a dot are left out.

    Raises:
        BundleError: the result would not be a valid bundle.
    """
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    path = folder / MANIFEST
    try:
        names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if _belongs(p, folder))
        files = {name: sha256_file(folder / name) for name in names}
        data = {"format": FORMAT, "created": now, "min_edge": __version__, **fields, "files": files}
        problems = settings.find_problems(data, Manifest, _RULES)
        if problems:
            raise BundleError(listed(f"no bundle can be built of {folder}", problems))
        manifest = msgspec.convert(data, Manifest)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(_said(manifest)), indent=2) + b"\n")
    except OSError as error:
        raise BundleError(f"the bundle {folder} cannot be built: {error.filename}: {error.strerror}") from error
    return read(folder)


def _belongs(path: Path, folder: Path) -> bool:
    parts = path.relative_to(folder).parts
    return path.is_file() and parts != (MANIFEST,) and not any(part.startswith(".") for part in parts)


def listed(headline: str, problems: Sequence[str]) -> str:
    """A headline with one problem a line below it."""
    return headline + ":\n" + "\n".join(f"  - {problem}" for problem in problems)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
