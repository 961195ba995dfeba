"""The site config: every problem at once, in words; the sample says the truth about the defaults."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tomli_w

from edge import config, settings
from edge.config import Config, FolderCamera, Mqtt, OpenCvCamera, PipeCamera, SimulatedCamera
from edge.errors import ConfigError

CAMERA = '[[camera]]\nid = "c"\nsource = "simulated"\n'
PLC = CAMERA + '[plc]\nport = "/dev/p"\n'
OUTPUT = '[[output]]\nid = "x"\non = ["NG"]\ndelay_ms = 5\n'
MASTER = '[challenge]\n[[challenge.master]]\nserial = "M1"\n'


def problems(text: str | bytes, tmp_path: Path) -> list[str]:
    path = tmp_path / "edge.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    assert str(path) in str(caught.value)
    return caught.value.problems


@pytest.mark.parametrize(
    ("text", "expected", "why"),
    [
        ("", "camera: missing", "a box without a camera has no job"),
        ("camera = []", "camera = []: must be a list of at least 1", "nor with an empty list of them"),
        ('[camera]\nid = "c"', "must be written [[camera]], with double brackets", "the common slip of TOML"),
        ("camera = [3]", "camera[1] = 3: must be a table", "a camera is a table"),
        ('[[camera]]\nid = "c"', 'camera["c"].source: missing: must be one of "folder", "opencv"', "says the kinds"),
        ('[[camera]]\nid = "c"\nsource = "usb"', 'source = "usb": must be one of', "an unknown kind"),
        ('[[camera]]\nid = "c"\nsource = ["x"]', 'source = ["x"]: must be one of', "a kind of the wrong type"),
        ('[[camera]]\nid = "a b"\nsource = "usb"', 'id = "a b": must be', "the rest is checked under an unknown kind"),
        ('[[camera]]\nid = "c"\nsource = "folder"', 'camera["c"].path: missing', "names what this kind needs"),
        ('[[camera]]\nsource = "simulated"', "camera[1].id: missing", "without an id its place names it"),
        (CAMERA + 'path = "x"', "path: unknown key; known: `boards`", "a key of another kind"),
        (CAMERA + "fps = 0", "fps = 0: must be a number above 0 and at most 1000", "both ends of the range"),
        (CAMERA + "fps = nan", "fps = nan: must be a number", "not a number"),
        (CAMERA + "stall_s = inf", "stall_s = inf: must be a number", "no wait is without end"),
        (CAMERA + "seed = 1.5", "seed = 1.5: must be a whole number", "no rounding behind the operator's back"),
        (CAMERA + "boards = true", "boards = true: must be a whole number", "true is not 1"),
        (CAMERA + 'width = "640"', 'width = "640": must be a whole number from 64 to 4096', "text is not a number"),
        (CAMERA + CAMERA, "several cameras have the id c", "topics would collide"),
        (CAMERA + "[mqtt]\nprot = 1883", "mqtt.prot: unknown key; did you mean `port`?", "a slip of the keyboard"),
        (CAMERA + "[mqqt]\nport = 1883", "mqqt: unknown key; did you mean `mqtt`?", "a misspelt table"),
        (CAMERA + "[mqtt]\nport = 70000", "mqtt.port = 70000: must be a whole number from 1 to 65535", "a range"),
        (CAMERA + "mqtt = 3", 'c"].mqtt: unknown key', "a table's key below [[camera]] belongs to the camera"),
        ("mqtt = 3\n" + CAMERA, "mqtt = 3: must be a table, written [mqtt]", "a table wanted"),
        (CAMERA + "[[mqtt]]\nport = 1", "must be a table, written [mqtt]", "one broker only"),
        (CAMERA + '[mqtt]\nprefix = "a/#"', 'prefix = "a/#": must be topic levels', "a wildcard"),
        (CAMERA + '[mqtt]\nprefix = "/a"', 'prefix = "/a": must be topic levels', "an empty level"),
        (CAMERA + '[mqtt]\nhost = ""', 'mqtt.host = "": must be non-empty text', "empty text is no host"),
        (CAMERA + '[paths]\nstate = "a\\u0000"', "paths.state = ", "a NUL ends a path early"),
        (CAMERA + '[station]\nnode = ".."', 'station.node = "..": must be', "names become parts of paths"),
        (CAMERA + '[station]\nnode = "a\\n"', 'station.node = "a\\n": must be', "a hidden line end"),
        (CAMERA + "[station]\nnode = 2024-01-01", 'station.node = "2024-01-01": must be', "a TOML date is no text"),
        (CAMERA + '[runtime]\nprefer = "onnx"', 'prefer = "onnx": must be one of "auto"', "an unknown runtime"),
        (CAMERA + '[runtime]\nproviders = ["cuda"]', 'providers = ["cuda"]: must be a list', "short names"),
        (CAMERA + "[runtime]\nproviders = []", "providers = []: must be a list of at least 1", "none"),
        (CAMERA + '[runtime]\nproviders = "CPUExecutionProvider"', "must be a list of at least 1", "one is a list too"),
        (
            CAMERA + '[runtime]\nproviders = ["CPUExecutionProvider", "CPUExecutionProvider"]',
            "CPUExecutionProvider is named more than once",
            "an order has no place for it twice",
        ),
        (CAMERA + '[mqtt]\npassword = "a"\npassword_file = "b"\nusername = "u"', "both given", "which one counts?"),
        (CAMERA + '[mqtt]\npassword = "a"', "a password is given without a username", "MQTT 3.1.1 forbids it"),
        (CAMERA + '[mqtt]\ntls = true\ncert_file = "a"', "cert_file is given without key_file", "half a certificate"),
        (CAMERA + '[mqtt]\ntls = true\nkey_file = "a"', "key_file is given without cert_file", "the other half"),
        (CAMERA + '[mqtt]\nca_file = "a"', "ca_file is given, but tls is off", "it would be ignored in silence"),
        (PLC + '[[output]]\nid = "x"\non = ["NG"]\n', "give delay_ms or delay_counts", "no delay"),
        (PLC + OUTPUT + "delay_counts = 5", "give delay_ms or delay_counts", "two delays"),
        (PLC + OUTPUT + OUTPUT, "several outputs have the id x", "which one is meant?"),
        (PLC + OUTPUT + 'port = "/dev/x"', 'port is given, but via is "plc"', "it would be ignored in silence"),
        (CAMERA + 'pairing = "counter"', 'camera c: pairing = "counter" is given without [plc]', "it never stalls"),
        (CAMERA + OUTPUT, "an output is given without [plc]", "nothing would fire it"),
        (PLC + OUTPUT.replace("NG", "LATE"), 'on = ["LATE"]: must be', "a LATE counts as FAIL"),
        (
            PLC + OUTPUT + 'via = "rts"\n' + OUTPUT.replace("x", "y") + 'via = "rts"\nport = "/dev/p"',
            "several outputs are on rts of /dev/p: give each its own line",
            "one would switch the other off, whether the PLC's own port is named or not",
        ),
        (
            PLC + "".join(OUTPUT.replace('"x"', f'"x{n}"') for n in range(17)),
            "17 outputs are more than 16",
            "a register has 16 bits",
        ),
        (CAMERA + MASTER, "[challenge] is given without [plc]", "nobody would say a serial"),
        (PLC + MASTER.replace("M1", "M 1"), 'serial = "M 1": must be 1 to 64', "no trigger can carry a space"),
        (PLC + MASTER.replace("M1", "-"), 'serial = "-": must be 1 to 64', "on the wire that is: no serial"),
        (PLC + MASTER.replace("M1", "Prüf"), "must be 1 to 64 printable ASCII", "nor other letters"),
        (PLC + MASTER + '[[challenge.master]]\nserial = "M1"', "several masters have the serial M1", "which one?"),
        (PLC + "[challenge]\nevery_h = 8", "challenge.master: missing", "a challenge without masters"),
        (
            PLC + 'dialect = "modbus_server"\n' + MASTER.replace("M1", "M" * 33),
            "Modbus carries 32 characters of a serial, not MMM",
            "it could never be shown, and parts would be held back for ever",
        ),
        (CAMERA + '[plc]\nport = "/dev/p"\nqueue = 17', "queue = 17: must be a whole number from 1 to 16", "a range"),
        (CAMERA + '[paths]\nrecipe = "a"\nrecipes = "b"', "recipe and recipes are both given", "which one counts?"),
        (CAMERA + '[paths]\nrecipes = "b"', "paths.recipes is given without [plc]", "only the first would ever count"),
        (CAMERA + "[mqtt\n", "not valid TOML", "broken TOML"),
        ("a = 1\nb = \n", "line 2", "broken TOML says its line"),
        (b"a = 1\nb = '\xff'\n", "line 2 is not UTF-8", "a file of another encoding says its line"),
        ("a = " + "[" * 5000, "not valid TOML", "deep nesting is refused, not followed"),
        ("#" * (settings.LARGEST_BYTES + 1), "larger than", "not a settings file"),
    ],
)
def test_a_wrong_config_says_what_is_wrong(text: str | bytes, expected: str, why: str, tmp_path: Path) -> None:
    found = problems(text, tmp_path)
    assert any(expected in problem for problem in found), f"{why}: {found}"


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    text = CAMERA + 'fps = 0\nspeed = 1\n[mqtt]\nport = 0\npasword = "x"\n[runtime]\nthreads = 99'
    assert len(problems(text, tmp_path)) == 5


def test_a_rule_waits_until_its_keys_are_valid(tmp_path: Path) -> None:
    found = problems(CAMERA + '[mqtt]\ntls = "yes"\nca_file = "a"', tmp_path)
    assert found == ['mqtt.tls = "yes": must be true or false'], "whether tls is off is not known yet"


def test_no_secret_is_shown_in_an_error(tmp_path: Path) -> None:
    text = '[[camera]]\nid = "c"\nsource = "opencv"\naddress = ["rtsp://u:hunter2@h/"]\n[mqtt]\npassword = ["hunter2"]'
    found = problems(text, tmp_path)
    assert len(found) == 2
    assert "hunter2" not in "".join(found)


@pytest.mark.parametrize(
    ("make", "expected", "why"),
    [
        (lambda p: None, "cannot be read: No such file", "missing"),
        (lambda p: p.mkdir(), "not a file", "a folder"),
        (lambda p: p.symlink_to("/dev/zero"), "not a file", "a device has no end"),
        (lambda p: p.symlink_to(p), "cannot be", "a link to itself"),
    ],
)
def test_an_unreadable_config_is_one_clear_error(make: Any, expected: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "edge.toml"
    make(path)
    with pytest.raises(ConfigError, match=expected):
        config.load(path)


def test_a_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "edge.toml"
    path.write_bytes(b"\xef\xbb\xbf" + CAMERA.replace("\n", "\r\n").encode())
    assert config.load(path).camera == [SimulatedCamera(id="c")]


def test_each_kind_of_camera_loads(tmp_path: Path) -> None:
    wanted = [
        FolderCamera(id="a", path="x/*.png"),
        OpenCvCamera(id="b", address="rtsp://h/x", fps=15),
        PipeCamera(id="c", command=["cat"], width=4, height=3, format="gray"),
        SimulatedCamera(id="d", seed=7),
    ]
    path = tmp_path / "edge.toml"
    path.write_text(settings.to_toml(Config(camera=wanted)))
    assert config.load(path) == Config(camera=wanted)


def test_providers_are_kept_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "edge.toml"
    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    path.write_text(f"{CAMERA}[runtime]\nproviders = {names}\n")
    assert config.load(path).runtime.providers == names, "whether this box has them is not the config's to know"
    path.write_text(CAMERA)
    assert config.load(path).runtime.providers == ["CPUExecutionProvider"]


SECRET = Config(
    camera=[
        OpenCvCamera(id="a", address="rtsp://admin:hunter2@10.0.0.7/live"),
        PipeCamera(id="b", command=["gst-launch-1.0", "rtspsrc", "user-pw=hunter2"], width=4, height=3),
    ],
    mqtt=Mqtt(username="line1", password="hunter2"),
)


def test_the_effective_config_masks_secrets_and_keeps_the_rest() -> None:
    text = config.effective(SECRET)
    assert "hunter2" not in text
    assert 'password = "********"' in text
    assert 'username = "line1"' in text
    assert "rtsp://admin:********@10.0.0.7/live" in text


def test_the_effective_config_without_secrets_loads_as_the_same_config(tmp_path: Path) -> None:
    path = tmp_path / "edge.toml"
    path.write_text(config.effective(Config(camera=[SimulatedCamera(id="a")])))
    assert config.load(path) == Config(camera=[SimulatedCamera(id="a")])


def test_the_hash_follows_settings_but_not_passwords() -> None:
    other_password = msgspec.structs.replace(SECRET, mqtt=Mqtt(username="line1", password="other"))
    other_port = msgspec.structs.replace(SECRET, mqtt=Mqtt(username="line1", password="hunter2", port=8883))
    assert config.config_hash(SECRET) == config.config_hash(other_password), "a password can be guessed from a hash"
    assert config.config_hash(SECRET) != config.config_hash(other_port)


# --- the sample ---

DEFAULT = re.compile(r"^# (?=[a-z_0-9]+ = )", re.MULTILINE)
EXAMPLE = re.compile(r"^#- ", re.MULTILINE)
LINE = re.compile(r"(?P<mark># |#- |)(?P<key>[a-z_0-9]+) = .*")
KINDS = {"folder": FolderCamera, "opencv": OpenCvCamera, "pipe": PipeCamera, "simulated": SimulatedCamera}
LISTED_OR_OPTIONAL = {"plc": config.Plc, "output": config.Output, "challenge": config.Challenge}
TABLES = {f.name: f.type for f in msgspec.structs.fields(Config) if f.name != "camera"}
TABLES |= LISTED_OR_OPTIONAL | {"challenge.master": config.Master}


def lines_of_the_sample() -> Iterator[tuple[type[msgspec.Struct], str, str, Any]]:
    """Struct, mark (`# `, `#- ` or nothing), key and value of each line that sets something."""
    struct: type[msgspec.Struct] = Config
    for line in config.sample().splitlines():
        if header := re.match(r"(?:#- )?\[+([\w.]+)\]+", line):
            struct = TABLES.get(header[1], config.CameraBase)
        elif kind := re.match(r'(?:#- )?source = "(\w+)"', line):
            struct = KINDS[kind[1]]
        elif match := LINE.fullmatch(line):
            yield struct, match["mark"], match["key"], settings.parse_toml(line[len(match["mark"]) :].encode(), line)


def test_the_sample_loads_as_it_is_with_nothing_but_defaults() -> None:
    assert config.load(config.SAMPLE) == Config(camera=[SimulatedCamera(id="cam1")])


def test_every_commented_value_of_the_sample_is_the_default() -> None:
    checked = 0
    for struct, mark, key, value in lines_of_the_sample():
        field = {f.name: f for f in msgspec.structs.fields(struct)}[key]
        if mark == "# ":
            default = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
            assert value == {key: default}, f"{struct.__name__}.{key}"
            checked += 1
        elif mark == "#- ":
            assert field.required or field.default is None, f"{struct.__name__}.{key} has a default: mark it `# `"
    assert checked > 30


def test_the_sample_names_every_key() -> None:
    named = {(struct, key) for struct, _, key, _ in lines_of_the_sample()}
    base = {field.name for field in msgspec.structs.fields(config.CameraBase)}
    for struct in [*TABLES.values(), *KINDS.values()]:
        for field in msgspec.structs.fields(struct):
            here = struct if field.name not in base else SimulatedCamera  # explained once, at the first camera
            elsewhere = field.name in ("id", "master")  # an id is always there; masters have tables of their own
            assert elsewhere or (here, field.name) in named, f"{struct.__name__}.{field.name}"


def test_the_sample_loads_with_everything_uncommented(tmp_path: Path) -> None:
    data = settings.parse_toml(DEFAULT.sub("", EXAMPLE.sub("", config.sample())).encode(), "sample")
    del data["mqtt"]["password"]  # given together with password_file, as the two ways to say it
    del data["paths"]["recipe"]  # or recipes
    del data["output"][0]["delay_counts"], data["output"][0]["port"]  # one delay; a port is for relays
    data["mqtt"]["tls"] = True  # the example's certificates want it
    path = tmp_path / "edge.toml"
    path.write_text(tomli_w.dumps(data))
    assert [camera.id for camera in config.load(path).camera] == ["cam1", "usb", "csi", "files"]
