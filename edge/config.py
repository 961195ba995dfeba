"""The site config: what this box is, what it looks at and whom it tells."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Union

import msgspec
from msgspec import Meta

# An MQTT topic level: no separators, no wildcards, nothing to quote in a shell.
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
Positive = Annotated[float, Meta(gt=0)]
Port = Annotated[int, Meta(ge=1, le=65535)]


class Station(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Where this box stands; the three names are levels of every MQTT topic."""

    site: Name = "site"
    line: Name = "line"
    node: Name = "edge"


class Paths(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Where the daemon keeps what must survive it."""

    state: str = "/var/lib/edge"  # outbox and installed bundles
    bundle: str | None = None  # a bundle folder; None: the active slot below `state`
    recipe: str | None = None  # a recipe file; None: the bundle's own


class Runtime(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Which inference runtime runs the model."""

    prefer: Literal["auto", "paddlelite", "onnxruntime"] = "auto"
    precision: Literal["auto", "int8", "fp32"] = "auto"
    threads: Annotated[int, Meta(ge=1, le=16)] = 1


class CameraBase(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, tag_field="source"):
    """What every camera has, whatever its frames come from."""

    id: Name
    stall_s: Positive = 5.0  # no new frame for so long: the source is closed and opened again
    frozen_frames: Annotated[int, Meta(ge=0)] = 0  # so many identical frames in a row: a fault; 0: not checked
    retry_s: Positive = 1.0  # pause before a source is opened again; doubles up to 4 times this


class FolderCamera(CameraBase, kw_only=True, frozen=True, forbid_unknown_fields=True, tag="folder"):
    """Image files of a folder or a glob, in the order of their names."""

    path: str
    fps: Positive = 10.0
    loop: bool = False


class OpenCvCamera(CameraBase, kw_only=True, frozen=True, forbid_unknown_fields=True, tag="opencv"):
    """Anything cv2.VideoCapture opens: /dev/v4l/by-id/..., rtsp://..., http://..., a video file."""

    address: str
    width: Annotated[int, Meta(ge=1)] | None = None
    height: Annotated[int, Meta(ge=1)] | None = None
    fps: Positive | None = None  # asked of a camera; paces a video file
    fourcc: Annotated[str, Meta(pattern=r"^.{4}$")] | None = None
    loop: bool = False  # a video file starts over at its end


class PipeCamera(CameraBase, kw_only=True, frozen=True, forbid_unknown_fields=True, tag="pipe"):
    """Raw frames on the standard output of a command (gst-launch-1.0, ffmpeg), without a shell."""

    command: Annotated[list[str], Meta(min_length=1)]
    width: Annotated[int, Meta(ge=1, le=16384)]
    height: Annotated[int, Meta(ge=1, le=16384)]
    format: Literal["gray", "bgr"] = "bgr"


class SimulatedCamera(CameraBase, kw_only=True, frozen=True, forbid_unknown_fields=True, tag="simulated"):
    """A line that draws circuit boards, with ground truth, through a physical camera model."""

    fps: Positive = 5.0
    width: Annotated[int, Meta(ge=64, le=4096)] = 640
    height: Annotated[int, Meta(ge=64, le=4096)] = 640
    seed: int = 1
    defect_rate: Annotated[float, Meta(ge=0, le=1)] = 0.5  # share of boards with at least one defect
    fault_rate: Annotated[float, Meta(ge=0, le=1)] = 0.15  # share of frames the gate should refuse
    boards: Annotated[int, Meta(ge=0)] = 0  # ends after so many; 0: endless


Camera = Union[FolderCamera, OpenCvCamera, PipeCamera, SimulatedCamera]


class Mqtt(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The broker and how this box presents itself to it."""

    host: str = "127.0.0.1"
    port: Port = 1883
    prefix: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*$")] = "edge"
    client_id: Name | None = None  # None: edge-<node>
    username: str | None = None
    password: str | None = None
    password_file: str | None = None  # e.g. a systemd credential; instead of `password`
    tls: bool = False
    ca_file: str | None = None  # None: the system's certificate authorities
    cert_file: str | None = None
    key_file: str | None = None
    keepalive_s: Annotated[int, Meta(ge=5, le=3600)] = 30


class OutboxSettings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """How much may wait for the broker."""

    quota_mb: Positive = 256.0


class Publishing(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What is told how often."""

    health_s: Positive = 30.0
    image_every_s: Annotated[float, Meta(ge=0)] = 1.0  # a camera's image at most so often; 0: none
    image_width: Annotated[int, Meta(ge=64, le=4096)] = 640
    image_quality: Annotated[int, Meta(ge=1, le=100)] = 80


class Config(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One site config, as checked by `load`."""

    camera: Annotated[list[Camera], Meta(min_length=1)]
    station: Station = Station()
    paths: Paths = Paths()
    runtime: Runtime = Runtime()
    mqtt: Mqtt = Mqtt()
    outbox: OutboxSettings = OutboxSettings()
    publish: Publishing = Publishing()


def load(path: Path) -> Config:
    """Read and check a site config.

    Raises:
        ConfigError: with every problem found, not just the first.
    """
    raise AssertionError("written in the next step")
