"""Buffers and frames of the network for cameras on it; left alone where no camera needs them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from edge.config import Camera, Config, OpenCvCamera, PipeCamera
from edge.doctor.context import Context
from edge.doctor.finding import Finding, Reporter
from edge.doctor.system import System

SUBJECT: Final = "network"
# A burst of a 5 MP frame over UDP has to fit while the reader is busy.
GIGE_RMEM: Final = 33_554_432
JUMBO: Final = 9000
GIGABIT: Final = 1000  # Mbit/s
# Elements and programs that speak GigE Vision, whose frames come as UDP.
GIGE: Final = re.compile(r"\b(aravissrc|arv-\S+|pylonsrc|tcambin|tcamsrc|vimbasrc|spinnakersrc|udpsrc|mvimpact\S*)\b")
STREAM: Final = re.compile(r"(rtsp|rtsps|rtp|udp|http|https|rtmp)://", re.IGNORECASE)
VIRTUAL: Final = (
    "lo", "docker", "veth", "br-", "virbr", "l4tbr", "usb", "rndis", "tun", "tap", "wg", "dummy", "can", "ifb",
)  # fmt: skip
BUFFER_FIX: Final = (
    f"`printf 'net.core.rmem_max={GIGE_RMEM}\\nnet.core.rmem_default={GIGE_RMEM}\\n' | "
    "sudo tee /etc/sysctl.d/60-edge-gige.conf && sudo sysctl --system`"
)

_note = Reporter(SUBJECT)


def check(context: Context) -> Iterator[Finding]:
    """What GigE cameras need, then what every camera on the network needs."""
    if context.config is None:
        return
    gige, streams = network_cameras(context.config)
    if not gige and not streams:
        yield _note.ok("no_network_camera", "no camera comes over the network")
        return
    if gige:
        yield buffer_finding(context.system, gige)
        yield from _lost(context.system)
    yield from _links(context.system, gige)


def network_cameras(config: Config) -> tuple[list[str], list[str]]:
    """The ids of cameras whose frames come as UDP (GigE Vision, RTP), and of other ones on the network."""
    gige = [camera.id for camera in config.camera if GIGE.search(_said(camera)) or "udp://" in _said(camera).lower()]
    streams = [camera.id for camera in config.camera if STREAM.search(_said(camera)) and camera.id not in gige]
    return gige, streams


def _said(camera: Camera) -> str:
    if isinstance(camera, OpenCvCamera):
        return camera.address
    return " ".join(camera.command) if isinstance(camera, PipeCamera) else ""


def buffer_finding(system: System, cameras: list[str]) -> Finding:
    """Whether the kernel lets a socket hold a whole frame."""
    most, usual = (system.number(f"/proc/sys/net/core/rmem_{name}") for name in ("max", "default"))
    told = {"rmem_max": most, "rmem_default": usual, "cameras": cameras}
    if most is None:
        return _note.unknown(
            "buffers_unknown", "net.core.rmem_max cannot be read", "`sysctl net.core.rmem_max`", **told
        )
    text = f"a socket may hold {most / 1e6:.1f} MB (net.core.rmem_max) for {', '.join(cameras)}"
    if most < GIGE_RMEM:
        return _note.warning(
            "buffers_small", f"{text}: bursts of a GigE camera are cut, frames tear or are lost", BUFFER_FIX, **told
        )
    return _note.ok("buffers", text, **told)


def _lost(system: System) -> Iterator[Finding]:
    """UDP that came in and found no room, since the start."""
    rows = [line.split() for line in (system.text("/proc/net/snmp") or "").splitlines() if line.startswith("Udp:")]
    if len(rows) < 2 or "RcvbufErrors" not in rows[0]:
        return
    lost = int(rows[1][rows[0].index("RcvbufErrors")])
    if lost:
        yield _note.warning(
            "packets_lost", f"since it started {lost} UDP packets found no room in a socket", BUFFER_FIX, lost=lost
        )


def _links(system: System, gige: list[str]) -> Iterator[Finding]:
    names = [
        name
        for name in system.names("/sys/class/net")
        if not name.startswith(VIRTUAL)
        and not system.exists(f"/sys/class/net/{name}/wireless")
        and system.text(f"/sys/class/net/{name}/operstate") in ("up", "unknown")
    ]
    if not names:
        yield _note.error(
            "no_link",
            "no network cable has a link, and a camera comes over the network",
            "plug it in; `ip -br link` shows the lamps",
        )
    for name in names:
        yield from _link(system, name, bool(gige))


def _link(system: System, name: str, gige: bool) -> Iterator[Finding]:
    folder = f"/sys/class/net/{name}"
    speed, mtu = system.number(f"{folder}/speed"), system.number(f"{folder}/mtu") or 0
    told = {"interface": name, "speed_mbit": speed, "mtu": mtu}
    errors = sum(system.number(f"{folder}/statistics/{kind}") or 0 for kind in ("rx_crc_errors", "rx_frame_errors"))
    if errors:
        yield _note.warning(
            "cable",
            f"{name} has received {errors} damaged frames",
            "change the cable (Cat 5e or better, away from drives) and try another port of the switch",
            errors=errors,
            **told,
        )
    if speed is not None and 0 < speed < GIGABIT:
        yield _note.warning(
            "slow_link",
            f"{name} has a link of {speed} Mbit/s only",
            "change the cable (all 8 wires are needed), or the port of the switch",
            **told,
        )
    if gige and mtu < JUMBO:
        yield _note.info(
            "no_jumbo",
            f"{name} sends frames of {mtu} bytes; with jumbo frames a GigE camera costs a fifth of the interrupts",
            f"if camera and switch can: `sudo nmcli connection modify {name} 802-3-ethernet.mtu 9000` or "
            f"`sudo ip link set {name} mtu 9000`, and the camera's packet size to 8228",
            **told,
        )
    elif not errors:
        yield _note.ok("link", f"{name}: {f'{speed} Mbit/s, ' if speed and speed > 0 else ''}MTU {mtu}", **told)
