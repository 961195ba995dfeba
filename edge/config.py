"""The site config: what this box is, what it looks at and whom it tells."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from edge import settings
from edge.settings import Rule

SAMPLE = Path(__file__).with_name("sample.toml")

# An MQTT topic level and a part of file names: no separators, no wildcards, nothing to quote in a shell.
_NAME = "1 to 64 letters, digits, `.`, `-` or `_`, not beginning with `.` or `-`"
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\Z", description=_NAME)]
Text = Annotated[str, Meta(pattern=r"^[^\x00]+\Z", description="non-empty text")]
Positive = Annotated[float, Meta(gt=0)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Fps = Annotated[float, Meta(gt=0, le=1000)]
_PROVIDER = "the name of an execution provider, such as `CPUExecutionProvider` or `CUDAExecutionProvider`"
Provider = Annotated[str, Meta(pattern=r"^[A-Za-z0-9]{1,40}ExecutionProvider\Z", description=_PROVIDER)]
Port = Annotated[int, Meta(ge=1, le=65535)]
_PRODUCT_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z"  # as a manifest's
_PRODUCT = "the name of a product, of 1 to 64 letters, digits, `-` or `_`"
# What the wire can carry; `-` alone stands there for a part without a serial.
_SERIAL = "1 to 64 printable ASCII characters without space and `*`, and not `-` alone"
Serial = Annotated[str, Meta(pattern=r"^(?!-\Z)[!-)+-~]{1,64}\Z", description=_SERIAL)]
MODBUS_SERIAL = 32  # characters
MOST_OUTPUTS = 16  # they are bits of one register


class Station(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Where this box stands; the three names are levels of every MQTT topic."""

    site: Name = "site"
    line: Name = "line"
    node: Name = "edge"


class Paths(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Where the daemon keeps what must survive it."""

    state: Text = "/var/lib/edge"  # outbox and installed bundles
    bundle: Text | None = None  # a bundle folder; None: the active slot below `state`
    recipe: Text | None = None  # a recipe file; None: the bundle's own
    recipes: Text | None = None  # a folder of recipes, one a part number; None: there is only the one


class Runtime(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Which inference runtime runs the model."""

    prefer: Literal["auto", "paddlelite", "onnxruntime"] = "auto"
    precision: Literal["auto", "int8", "fp32"] = "auto"
    threads: Annotated[int, Meta(ge=1, le=16)] = 1
    # Execution providers of ONNX Runtime, first choice first; whether this box has them shows when the model loads.
    providers: Annotated[list[Provider], Meta(min_length=1)] = msgspec.field(
        default_factory=lambda: ["CPUExecutionProvider"]
    )


Count = Annotated[int, Meta(ge=0)]

# A driver can repeat its last image for ever after an unplug. A live image differs by its noise; so many identical
# ones in a row are no coincidence, and few enough to notice within seconds.
LIVE_FROZEN_FRAMES = 100


class CameraBase(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, tag_field="source"):
    """What every camera has, whatever its frames come from."""

    id: Name
    stall_s: Seconds = 3.0  # no new frame for so long: the source is closed and opened again
    frozen_frames: Count = 0  # so many identical frames in a row: a fault; 0: not checked
    retry_s: Seconds = 0.5  # pause before a source is opened again; doubles up to 4 times this
    # With triggers: which of its frames belongs to one.
    pairing: Literal["time", "counter"] = "time"  # counter: the trigger fires this camera too, frame n is trigger n
    offset_ms: Annotated[float, Meta(ge=-10_000, le=60_000)] = 0.0  # the part is in its view so long after the trigger
    latency_ms: Annotated[float, Meta(ge=0, le=10_000)] = 0.0  # from exposure until the frame is in memory
    window_ms: Annotated[float, Meta(gt=0, le=10_000)] = 50.0  # a frame further off than this shows no part


class FolderCamera(CameraBase, kw_only=True, frozen=True, forbid_unknown_fields=True, tag="folder"):
    """Image files of a folder or a glob, in the order of their names."""

    path: Text
    fps: Fps = 10.0
    loop: bool = False


class OpenCvCamera(CameraBase, kw_only=True, frozen=True, forbid_unknown_fields=True, tag="opencv"):
    """Anything cv2.VideoCapture opens: /dev/v4l/by-id/..., rtsp://..., http://..., a video file."""

    frozen_frames: Count = LIVE_FROZEN_FRAMES
    address: Text
    width: Annotated[int, Meta(ge=1, le=16384)] | None = None
    height: Annotated[int, Meta(ge=1, le=16384)] | None = None
    fps: Fps | None = None  # asked of a camera; paces a video file
    fourcc: Annotated[str, Meta(pattern=r"^[ -~]{4}\Z", description='4 characters, such as "MJPG"')] | None = None
    loop: bool = False  # a video file starts over at its end


class PipeCamera(CameraBase, kw_only=True, frozen=True, forbid_unknown_fields=True, tag="pipe"):
    """Raw frames on the standard output of a command (gst-launch-1.0, ffmpeg), without a shell."""

    frozen_frames: Count = LIVE_FROZEN_FRAMES
    command: Annotated[list[Text], Meta(min_length=1)]
    width: Annotated[int, Meta(ge=1, le=16384)]
    height: Annotated[int, Meta(ge=1, le=16384)]
    format: Literal["gray", "bgr"] = "bgr"


class SimulatedCamera(CameraBase, kw_only=True, frozen=True, forbid_unknown_fields=True, tag="simulated"):
    """A line that draws circuit boards, with ground truth, through a physical camera model."""

    fps: Fps = 5.0
    width: Annotated[int, Meta(ge=64, le=4096)] = 640
    height: Annotated[int, Meta(ge=64, le=4096)] = 640
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1)] = 1
    defect_rate: Annotated[float, Meta(ge=0, le=1)] = 0.5  # share of boards with at least one defect
    fault_rate: Annotated[float, Meta(ge=0, le=1)] = 0.15  # share of frames the gate should refuse
    boards: Annotated[int, Meta(ge=0)] = 0  # ends after so many; 0: endless


Camera = FolderCamera | OpenCvCamera | PipeCamera | SimulatedCamera


_PREFIX = "topic levels such as `plant/edge`, of letters, digits, `.`, `-` and `_`"
Prefix = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*\Z", description=_PREFIX)]


class Mqtt(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The broker and how this box presents itself to it."""

    host: Text = "127.0.0.1"
    port: Port = 1883
    prefix: Prefix = "edge"
    client_id: Name | None = None  # None: edge-<node>
    username: Text | None = None
    password: Text | None = None
    password_file: Text | None = None  # e.g. a systemd credential; instead of `password`
    tls: bool = False
    ca_file: Text | None = None  # None: the system's certificate authorities
    cert_file: Text | None = None
    key_file: Text | None = None
    keepalive_s: Annotated[int, Meta(ge=5, le=3600)] = 30


class OutboxSettings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """How much may wait for the broker."""

    quota_mb: Positive = 256.0


class Publishing(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What is told how often."""

    health_s: Seconds = 30.0
    image_every_s: Annotated[float, Meta(ge=0)] = 1.0  # a camera's image at most so often; 0: none
    image_width: Annotated[int, Meta(ge=64, le=4096)] = 640
    image_quality: Annotated[int, Meta(ge=1, le=100)] = 80


class Plc(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The line's controller on a serial port. With this table the PLC triggers; without it each frame is a part."""

    port: Text  # /dev/serial/by-id/... stays with its adapter
    dialect: Literal["ascii", "modbus_server", "modbus_client"] = "ascii"
    baud: Annotated[int, Meta(ge=1200, le=4_000_000)] = 115_200
    parity: Literal["none", "even", "odd"] = "none"
    stop_bits: Literal[1, 2] = 1
    check: bool = True  # commands carry a check of their own: CRC-32 of a line, a sum over a block of registers
    heartbeat_s: Annotated[float, Meta(ge=0.1, le=60)] = 1.0  # both ways; silence for three of them is an alarm
    ack_s: Annotated[float, Meta(ge=0.02, le=60)] = 0.5  # an answer that is not acknowledged is said again
    queue: Annotated[int, Meta(ge=1, le=16)] = 2  # so many parts may be between their trigger and their answer
    unit: Annotated[int, Meta(ge=1, le=247)] = 1  # Modbus: our address as server, the PLC's as client
    poll_ms: Annotated[float, Meta(ge=2, le=1000)] = 10.0  # Modbus client: how often the PLC is asked


class Output(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Something that moves or lights after a verdict: an ejector, a stack light."""

    id: Name
    on: Annotated[list[Literal["OK", "NG", "REVIEW", "RETAKE", "FAIL"]], Meta(min_length=1)]  # what fires it
    delay_ms: Annotated[float, Meta(ge=0, le=600_000)] | None = None  # after the trigger; or by the way of the belt:
    delay_counts: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None  # encoder counts after the trigger's
    pulse_ms: Annotated[float, Meta(ge=1, le=600_000)] = 100.0
    via: Literal["plc", "rts", "dtr"] = "plc"  # a signal to the PLC, or a line of a serial port with a relay on it
    port: Text | None = None  # of rts and dtr; None: the PLC's own


class Master(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A part that is known to be bad, to prove that the station still finds it."""

    serial: Serial
    verdict: Literal["NG", "REVIEW"] = "NG"
    defect: Text | None = None  # a class of the bundle that must be among the reasons


class Challenge(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Known-bad parts that have to be shown to the station each shift."""

    master: Annotated[list[Master], Meta(min_length=1)]
    every_h: Annotated[float, Meta(gt=0, le=8760)] = 8.0
    overdue: Literal["alarm", "block"] = "alarm"  # block: no part passes until every master was found
    missed: Literal["alarm", "block"] = "block"


class EvidenceSettings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Pictures of parts that are worth a look, kept on this box."""

    use: bool = True
    quota_mb: Positive = 2000.0  # beyond it the least valuable go first
    ok_every: Count = 100  # of the parts that pass each so many-th is kept; 0: none


class GenealogySettings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One row a part, each with the hash of the one before it."""

    use: bool = True
    keep_days: Annotated[float, Meta(gt=0, le=36_500)] = 400.0


class RecorderSettings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The last minutes as they were: every frame that was judged, for `edge incident export`."""

    use: bool = True
    minutes: Annotated[float, Meta(gt=0, le=1440)] = 15.0
    quota_mb: Positive = 500.0


class Update(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Where new bundles come from, and whom they are believed."""

    root: Text = "/etc/edge/trust/root.json"  # the root of trust: whoever signs by it is believed
    development: bool = False  # a root that was made for development is believed, too
    product: Annotated[str, Meta(pattern=_PRODUCT_PATTERN, description=_PRODUCT)] | None = (
        None  # None: the active one's
    )
    url: Annotated[str, Meta(pattern=r"^https?://\S+\Z", description="an https:// or http:// address")] | None = None
    ca_file: Text | None = None  # of an https server; None: the system's certificate authorities
    kb_s: Annotated[float, Meta(ge=0, le=10_000_000)] = 0.0  # a download takes at most so much of the network; 0: all
    usb: bool = True  # sticks are looked at


class TrialSettings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What a new bundle has to stand on live parts before it stays."""

    shadow_parts: Annotated[int, Meta(ge=0, le=1_000_000)] = 50  # seen beside the old one first; 0: none
    shadow_minutes: Annotated[float, Meta(ge=0, le=10_080)] = 30.0  # it waits at most so long for spare time
    disagree_max: Annotated[float, Meta(ge=0, le=1)] = 0.2  # share of parts on which the two may differ
    parts: Annotated[int, Meta(ge=1, le=1_000_000)] = 200  # healthy ones, in charge, and
    minutes: Annotated[float, Meta(ge=0, le=10_080)] = 10.0
    reject_rise: Annotated[float, Meta(ge=0, le=1)] = 0.2  # share of parts that are not OK may rise by so much
    latency_factor: Annotated[float, Meta(ge=1, le=100)] = 2.0  # a frame's time may grow to so many times


class Config(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One site config, as checked by `load`."""

    camera: Annotated[list[Camera], Meta(min_length=1)]
    station: Station = Station()
    paths: Paths = Paths()
    runtime: Runtime = Runtime()
    mqtt: Mqtt = Mqtt()
    outbox: OutboxSettings = OutboxSettings()
    publish: Publishing = Publishing()
    plc: Plc | None = None
    output: list[Output] = []
    challenge: Challenge | None = None
    evidence: EvidenceSettings = EvidenceSettings()
    genealogy: GenealogySettings = GenealogySettings()
    recorder: RecorderSettings = RecorderSettings()
    update: Update = Update()
    trial: TrialSettings = TrialSettings()


def _unique_ids(cameras: Sequence[Any]) -> str | None:
    ids = [camera.get("id") for camera in cameras if isinstance(camera, Mapping)]
    twice = sorted({str(name) for name in ids if name is not None and ids.count(name) > 1})
    return f"several cameras have the id {', '.join(twice)}: give each its own" if twice else None


def _counting_wants_plc(cameras: Sequence[Any], plc: Any) -> str | None:
    counting = [str(x.get("id")) for x in cameras if isinstance(x, Mapping) and x.get("pairing") == "counter"]
    if plc or not counting:
        return None
    return f'camera {", ".join(counting)}: pairing = "counter" is given without [plc]: no trigger would be counted'


def _each_once(providers: Sequence[str]) -> str | None:
    twice = sorted({name for name in providers if providers.count(name) > 1})
    return f"providers: {', '.join(twice)} is named more than once: keep the first" if twice else None


def _outputs_are_distinct(outputs: Sequence[Any]) -> str | None:
    ids = [output.get("id") for output in outputs if isinstance(output, Mapping)]
    twice = sorted({str(name) for name in ids if name is not None and ids.count(name) > 1})
    return f"several outputs have the id {', '.join(twice)}: give each its own" if twice else None


def _outputs_want_plc(outputs: Sequence[Any], plc: Any) -> str | None:
    return "an output is given without [plc]: what fires it is the answer to a trigger" if outputs and not plc else None


def _outputs_fit(outputs: Sequence[Any]) -> str | None:
    return f"{len(outputs)} outputs are more than {MOST_OUTPUTS}" if len(outputs) > MOST_OUTPUTS else None


def _lines_are_distinct(outputs: Sequence[Any], plc: Any) -> str | None:
    """Two outputs on one wire would switch each other off."""
    own = plc.get("port") if isinstance(plc, Mapping) else None
    tables = [output for output in outputs if isinstance(output, Mapping) and output.get("via") in ("rts", "dtr")]
    lines = [(str(output.get("port") or own), str(output["via"])) for output in tables]
    twice = sorted({f"{via} of {port}" for port, via in lines if lines.count((port, via)) > 1})
    return f"several outputs are on {', '.join(twice)}: give each its own line" if twice else None


def _one_delay(delay_ms: float | None, delay_counts: int | None) -> str | None:
    if (delay_ms is None) == (delay_counts is None):
        return "give delay_ms or delay_counts, one of them"
    return None


def _port_is_for_lines(via: str, port: str | None) -> str | None:
    return 'port is given, but via is "plc": set via = "rts" or "dtr"' if port and via == "plc" else None


def _masters_are_distinct(masters: Sequence[Any]) -> str | None:
    serials = [master.get("serial") for master in masters if isinstance(master, Mapping)]
    twice = sorted({str(name) for name in serials if name is not None and serials.count(name) > 1})
    return f"several masters have the serial {', '.join(twice)}: give each its own" if twice else None


def _masters_fit(challenge: Any, plc: Any) -> str | None:
    """What the dialect cannot carry would be owed for ever."""
    if not isinstance(challenge, Mapping) or not isinstance(plc, Mapping) or plc.get("dialect", "ascii") == "ascii":
        return None
    masters = [master for master in challenge.get("master", []) if isinstance(master, Mapping)]
    long = [str(m["serial"]) for m in masters if len(str(m.get("serial", ""))) > MODBUS_SERIAL]
    return f"challenge: Modbus carries {MODBUS_SERIAL} characters of a serial, not {', '.join(long)}" if long else None


def _one_recipe(recipe: str | None, recipes: str | None) -> str | None:
    return "recipe and recipes are both given: keep one" if recipe and recipes else None


def _recipes_want_plc(paths: Any, plc: Any) -> str | None:
    if plc or not isinstance(paths, Mapping) or not paths.get("recipes"):
        return None
    return "paths.recipes is given without [plc]: only a trigger says which recipe a part wants; give paths.recipe"


def _challenge_wants_plc(challenge: Any, plc: Any) -> str | None:
    return "[challenge] is given without [plc]: only a trigger tells a part's serial" if challenge and not plc else None


def _one_password(password: str | None, password_file: str | None) -> str | None:
    return "password and password_file are both given: keep one" if password and password_file else None


def _password_has_user(username: str | None, password: str | None, password_file: str | None) -> str | None:
    if username is None and (password or password_file):
        return "a password is given without a username: give mqtt.username too"
    return None


def _certificate_has_key(cert_file: str | None, key_file: str | None) -> str | None:
    if (cert_file is None) == (key_file is None):
        return None
    has, lacks = ("cert_file", "key_file") if cert_file else ("key_file", "cert_file")
    return f"{has} is given without {lacks}: a client certificate needs both"


def _files_want_tls(tls: bool, ca_file: str | None, cert_file: str | None, key_file: str | None) -> str | None:
    names = {"ca_file": ca_file, "cert_file": cert_file, "key_file": key_file}
    given = [name for name, value in names.items() if value is not None]
    if tls or not given:
        return None
    return f"{' and '.join(given)} {'is' if len(given) == 1 else 'are'} given, but tls is off: set tls = true"


RULES: settings.Rules = {
    Config: (
        Rule(("camera",), _unique_ids),
        Rule(("camera", "plc"), _counting_wants_plc),
        Rule(("output",), _outputs_are_distinct),
        Rule(("output",), _outputs_fit),
        Rule(("output", "plc"), _outputs_want_plc),
        Rule(("output", "plc"), _lines_are_distinct),
        Rule(("challenge", "plc"), _challenge_wants_plc),
        Rule(("challenge", "plc"), _masters_fit),
        Rule(("paths", "plc"), _recipes_want_plc),
    ),
    Paths: (Rule(("recipe", "recipes"), _one_recipe),),
    Output: (Rule(("delay_ms", "delay_counts"), _one_delay), Rule(("via", "port"), _port_is_for_lines)),
    Challenge: (Rule(("master",), _masters_are_distinct),),
    Runtime: (Rule(("providers",), _each_once),),
    Mqtt: (
        Rule(("password", "password_file"), _one_password),
        Rule(("username", "password", "password_file"), _password_has_user),
        Rule(("cert_file", "key_file"), _certificate_has_key),
        Rule(("tls", "ca_file", "cert_file", "key_file"), _files_want_tls),
    ),
}


def load(path: Path) -> Config:
    """Read and check a site config. Whether the files that it names exist is for their users to find.

    Raises:
        ConfigError: with every problem found, not just the first.
    """
    return settings.check(settings.read_toml(path), Config, str(path), RULES)


def effective(config: Config) -> str:
    """The whole config with its defaults, as TOML text; secrets are masked, what is not set is left out."""
    return settings.to_toml(config, masked=True)


def config_hash(config: Config) -> str:
    """SHA-256 of the effective config. Passwords do not enter it: it is published, and they could be guessed.

    >>> config = Config(camera=[SimulatedCamera(id="cam1")])
    >>> config_hash(config) == config_hash(Config(camera=[SimulatedCamera(id="cam1", fps=5.0)]))
    True
    """
    return hashlib.sha256(effective(config).encode()).hexdigest()


def sample() -> str:
    """The commented sample config: every key with its default."""
    return SAMPLE.read_text(encoding="utf-8")
