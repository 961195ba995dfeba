"""Is each camera of the config there, under a name that stays, and does it offer what is asked of it."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from edge.capture import folder as folders
from edge.capture import opencv
from edge.config import Camera, FolderCamera, OpenCvCamera, PipeCamera
from edge.doctor import v4l2
from edge.doctor.context import Context
from edge.doctor.examine import Check, side_by_side
from edge.doctor.finding import Finding, Reporter
from edge.doctor.permissions import group_of
from edge.doctor.system import System
from edge.errors import CaptureError

SUBJECT: Final = "cameras"
CONNECT_S: Final = 4.0
EACH_S: Final = 30.0  # for one camera
PORTS: Final = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443, "rtmp": 1935}
# Programs that can be asked for their version without doing anything.
VERSION_FLAGS: Final = {
    "gst-launch-1.0": "--version",
    "ffmpeg": "-version",
    "v4l2-ctl": "--version",
    "rpicam-vid": "--version",
    "rpicam-raw": "--version",
    "libcamera-vid": "--version",
}
RAW_BYTES: Final = {"YUYV": 2.0, "UYVY": 2.0, "GREY": 1.0, "NV12": 1.5, "YU12": 1.5, "BGR3": 3.0, "RGB3": 3.0}
USB2_MBIT: Final = 480
USB_SHARE: Final = 0.75  # of a bus that isochronous transfers may take
MOST_OFFERS: Final = 12  # in one message

_note = Reporter(SUBJECT)


def check(context: Context) -> Iterator[Finding]:
    """Each camera of the config, then how they share the USB."""
    cameras = context.config.camera if context.config is not None else []
    # Each in a thread of its own: some that do not answer must not use up the time of all.
    yield from side_by_side(context, [(SUBJECT, _checker(camera)) for camera in cameras], EACH_S)
    yield from _shared_buses(context.system, cameras)
    if context.config is None:
        yield from _present(context.system)


def _checker(camera: Camera) -> Check:
    return lambda context: check_camera(context.system, camera)


def _present(system: System) -> Iterator[Finding]:
    """Without a config: which there are, in words to copy into one."""
    names = [f"/dev/v4l/by-id/{name}" for name in system.names("/dev/v4l/by-id") if name.endswith("index0")]
    if names:
        yield _note.info("present", f"cameras at this box: {', '.join(names)}", "name one as address of a [[camera]]")


def check_camera(system: System, camera: Camera) -> Iterator[Finding]:
    """One camera, by its kind."""
    if isinstance(camera, FolderCamera):
        yield _folder(camera)
    elif isinstance(camera, PipeCamera):
        yield from _pipe(system, camera)
    elif isinstance(camera, OpenCvCamera):
        if "://" in camera.address:
            yield _stream(camera)
        elif camera.address.startswith("/dev/"):
            yield from _device(system, camera)
        else:
            yield _file(camera)
    else:
        yield _note.ok("simulated", f"{camera.id} is simulated", camera=camera.id)


def _folder(camera: FolderCamera) -> Finding:
    try:
        _, files = folders.list_images(camera.path)
    except CaptureError as error:
        return _from_error(camera.id, "no_images", error)
    return _note.ok("images", f"{camera.id}: {len(files)} images in {camera.path}", camera=camera.id, images=len(files))


def _file(camera: OpenCvCamera) -> Finding:
    try:
        opencv.check_address(camera.address)
    except CaptureError as error:
        return _from_error(camera.id, "no_file", error)
    return _note.ok("file", f"{camera.id}: the video file {camera.address} is there", camera=camera.id)


def _from_error(camera: str, code: str, error: CaptureError) -> Finding:
    """Its text is `what: remedy`."""
    what, _, remedy = str(error).partition(": ")
    return _note.error(code, f"{camera}: {what}", remedy, camera=camera)


# --- streams ---


def _stream(camera: OpenCvCamera) -> Finding:
    """Whether the server of a stream answers; whether it streams is for the daemon to find."""
    shown = opencv.mask(camera.address)
    try:
        parts = urlsplit(camera.address)
        host, port = parts.hostname, parts.port or PORTS.get(parts.scheme.lower())
    except ValueError:
        host = port = None
    if not host or port is None:
        return _note.unknown(
            "stream_unknown", f"{camera.id}: {shown} names no host and port that could be tried",
            "see whether the daemon gets frames: `journalctl -u edge`", camera=camera.id,
        )  # fmt: skip
    told = {"camera": camera.id, "host": host, "port": port}
    try:
        with socket.create_connection((host, port), CONNECT_S):
            pass
    except socket.gaierror:
        return _note.error(
            "stream_name",
            f"{camera.id}: the name {host} is unknown",
            "check the address, or give the camera's IP",
            **told,
        )
    except OSError as error:
        return _unreachable(camera.id, host, port, error)
    return _note.ok("stream", f"{camera.id}: {host}:{port} answers", **told)


def _unreachable(camera: str, host: str, port: int, error: OSError) -> Finding:
    told = {"camera": camera, "host": host, "port": port}
    if isinstance(error, ConnectionRefusedError):
        return _note.error(
            "stream_refused",
            f"{camera}: {host} is there, but refuses port {port}",
            "check the port in the address and that streaming is switched on in the camera",
            **told,
        )
    reason = " does not answer" if isinstance(error, TimeoutError) else f": {error.strerror or error}"
    return _note.error(
        "stream_unreachable",
        f"{camera}: {host}:{port}{reason}",
        f"is the camera powered (PoE lamp at the switch), is the cable in? `ping {host}`; `ip -br addr` shows whether "
        "this box has an address in the camera's network",
        **told,
    )


# --- devices ---


def _device(system: System, camera: OpenCvCamera) -> Iterator[Finding]:
    address = camera.address
    if not system.exists(address):
        yield missing_finding(system, camera.id, address)
        return
    yield from _name(system, camera.id, address)
    if not system.may(address, os.R_OK | os.W_OK):
        yield _note.error(
            "no_permission",
            f"{camera.id}: this user may not open {address}",
            f"`sudo usermod -aG {group_of(system, address, 'video')} $USER`, then log in again; or `sudo edge doctor`",
            camera=camera.id,
        )
        return
    yield from _offers(system, camera)
    yield from _usb(system, camera.id, address)


def missing_finding(system: System, camera: str, address: str) -> Finding:
    """An unplugged camera, with what is plugged in instead."""
    there = [f"/dev/v4l/by-id/{name}" for name in system.names("/dev/v4l/by-id")]
    nodes = [path for path in system.glob("/dev/video*")]
    seen = f"this box has {', '.join(there or nodes)}" if there or nodes else "this box sees no camera at all"
    return _note.error(
        "missing",
        f"{camera}: there is no {address}; {seen}",
        "plug the camera in, try another socket and cable, check its power; `sudo dmesg | tail -20` shows what the "
        "kernel saw. If it was exchanged for another one correct the address of this [[camera]]",
        camera=camera,
        address=address,
        present=there or nodes,
    )


def _name(system: System, camera: str, address: str) -> Iterator[Finding]:
    """/dev/videoN goes by the order in which the kernel finds them."""
    if address.startswith("/dev/v4l/"):
        yield _note.ok(
            "name", f"{camera}: {address.rpartition('/')[2]} is there", camera=camera, device=system.real(address)
        )
        return
    if not re.fullmatch(r"/dev/video\d+", address):
        return
    stable = stable_name(system, address)
    fix = f'write "{stable}"' if stable else "an udev rule by the port it is plugged in can give it a name"
    yield _note.warning(
        "name_not_stable",
        f"{camera}: {address} may be another camera after a restart or a re-plug",
        fix,
        camera=camera,
        stable=stable,
    )


def stable_name(system: System, device: str) -> str | None:
    """The name below /dev/v4l that leads to this device; by-id goes with the camera, by-path with the socket."""
    for kind in ("by-id", "by-path"):
        for name in system.names(f"/dev/v4l/{kind}"):
            if system.real(f"/dev/v4l/{kind}/{name}") == system.real(device):
                return f"/dev/v4l/{kind}/{name}"
    return None


def _offers(system: System, camera: OpenCvCamera) -> Iterator[Finding]:
    try:
        offer = v4l2.ask(system, camera.address)
    except OSError as error:
        yield _not_asked(camera, error)
        return
    yield offer_finding(camera, offer)


def _not_asked(camera: OpenCvCamera, error: OSError) -> Finding:
    if error.errno in (errno.EBUSY,):
        return _note.unknown(
            "busy",
            f"{camera.id}: {camera.address} is held by another program, so what it offers was not asked",
            f"`sudo fuser -v {camera.address}` names it; the service itself may hold it: `sudo systemctl stop edge`",
            camera=camera.id,
        )
    return _note.error(
        "not_v4l2",
        f"{camera.id}: {camera.address} does not answer as a camera ({error.strerror or error})",
        "unplug it and plug it in again; `sudo dmesg | tail -20` shows what its driver says",
        camera=camera.id,
    )


def offer_finding(camera: OpenCvCamera, offer: v4l2.Offer) -> Finding:
    """Whether the format and size of the config are among what is offered."""
    told = {"camera": camera.id, "card": offer.card, "driver": offer.driver, "formats": list(offer.formats)}
    if not offer.captures:
        return _note.error(
            "no_pictures",
            f"{camera.id}: {camera.address} ({offer.card}) gives no pictures: it is the node beside the camera",
            "take the name that ends in -video-index0",
            **told,
        )
    size = f"{camera.width or 'any'}x{camera.height or 'any'}" if camera.width or camera.height else ""
    wanted = f"{camera.fourcc or ''} {size}".strip()
    if offer.has(camera.fourcc, camera.width, camera.height):
        return _note.ok("format", f"{camera.id}: {offer.card} offers {wanted or ', '.join(offer.formats)}", **told)
    return _note.warning(
        "format",
        f"{camera.id}: {offer.card} does not offer {wanted}, and would give something else; it has {_listed(offer)}",
        "set fourcc, width and height of this [[camera]] to one of these",
        **told,
    )


def _listed(offer: v4l2.Offer) -> str:
    each = [f"{code} {size.width}x{size.height}" for code, sizes in offer.formats.items() for size in sizes]
    more = f" and {len(each) - MOST_OFFERS} more" if len(each) > MOST_OFFERS else ""
    return (", ".join(each[:MOST_OFFERS]) or "no format that it names") + more


# --- USB ---


def usb_of(system: System, device: str) -> tuple[str, int, int] | None:
    """Name, speed in Mbit/s and bus number of the USB device behind a camera's node; None when it is not on USB."""
    place = Path(system.real(f"/sys/class/video4linux/{Path(system.real(device)).name}/device"))
    for folder in (place, *place.parents):
        speed, bus = system.number(folder / "speed"), system.number(folder / "busnum")
        if speed is not None and bus is not None:
            return system.text(folder / "product") or folder.name, speed, bus
    return None


def _usb(system: System, camera: str, address: str) -> Iterator[Finding]:
    found = usb_of(system, address)
    if found is None:
        return
    product, speed, bus = found
    told = {"camera": camera, "speed_mbit": speed, "bus": bus}
    if speed < USB2_MBIT:
        yield _note.error(
            "usb_slow",
            f"{camera}: {product} runs at {speed} Mbit/s: the cable or the socket is bad",
            "plug it into another socket, with another short cable and without a hub",
            **told,
        )
    else:
        yield _note.ok("usb", f"{camera}: USB at {speed} Mbit/s, bus {bus}", **told)


def _shared_buses(system: System, cameras: Sequence[Camera]) -> Iterator[Finding]:
    """Uncompressed pictures of several cameras are soon too much for one USB 2 bus."""
    by_bus: dict[int, list[OpenCvCamera]] = defaultdict(list)
    for camera in cameras:
        if isinstance(camera, OpenCvCamera) and camera.address.startswith("/dev/") and system.exists(camera.address):
            found = usb_of(system, camera.address)
            if found is not None and found[1] <= USB2_MBIT:
                by_bus[found[2]].append(camera)
    for bus, sharing in by_bus.items():
        if len(sharing) > 1:
            yield bus_finding(bus, sharing)


def bus_finding(bus: int, sharing: Sequence[OpenCvCamera]) -> Finding:
    """Whether cameras on one USB 2 bus get through, as far as the config says what they send."""
    rates = [mbit_s(camera) for camera in sharing]
    known = sum(rate for rate in rates if rate is not None)
    names = ", ".join(camera.id for camera in sharing)
    told = {"bus": bus, "cameras": [camera.id for camera in sharing], "mbit_s": round(known)}
    fix = (
        'set fourcc = "MJPG" or a smaller size or fps, or plug one of them into a socket of another bus (`lsusb -t` '
        "shows them; USB 3 sockets are blue)"
    )
    if known > USB_SHARE * USB2_MBIT:
        text = (
            f"{names} share USB bus {bus} and send {known:.0f} Mbit/s: more than USB 2 carries, so one of them stalls"
        )
        return _note.error("usb_bus_full", text, fix, **told)
    if None in rates:
        return _note.warning(
            "usb_bus_shared", f"{names} share USB 2 bus {bus}; how much they send the config does not say", fix, **told
        )
    return _note.ok("usb_bus", f"{names} share USB bus {bus} at {known:.0f} Mbit/s", **told)


def mbit_s(camera: OpenCvCamera) -> float | None:
    """What a camera sends, as the config asks of it; None when that cannot be told.

    >>> mbit_s(OpenCvCamera(id="a", address="/dev/video0", fourcc="YUYV", width=640, height=480, fps=30.0))
    147.456
    """
    if camera.width is None or camera.height is None or camera.fps is None or camera.fourcc is None:
        return None
    if camera.fourcc == "MJPG":
        return camera.width * camera.height * camera.fps * 2 / 1e6  # about 2 bits a pixel
    size = RAW_BYTES.get(camera.fourcc)
    return None if size is None else camera.width * camera.height * camera.fps * size * 8 / 1e6


# --- pipes ---


def _pipe(system: System, camera: PipeCamera) -> Iterator[Finding]:
    program = camera.command[0]
    path = system.which(program)
    if path is None:
        yield _note.error(
            "no_program",
            f"{camera.id}: there is no program {program}",
            f"install it ({_package(program)}), or give its whole path as first word of the command",
            camera=camera.id,
        )
        return
    yield _runs(system, camera.id, path)
    yield from _elements(system, camera)
    yield from _named_devices(system, camera)


def _package(program: str) -> str:
    name = Path(program).name
    packages = {
        "gst-launch-1.0": "`sudo apt install gstreamer1.0-tools`",
        "rpicam-vid": "`sudo apt install rpicam-apps`",
    }
    return packages.get(name, f"`sudo apt install {name}` may bring it")


def _runs(system: System, camera: str, path: str) -> Finding:
    flag = VERSION_FLAGS.get(Path(path).name)
    if flag is None:
        return _note.ok("program", f"{camera}: the program {path} is there", camera=camera)
    ran = system.run([path, flag], 8)
    if ran is not None and ran.code == 0:
        version = (ran.out or ran.err).strip().splitlines()[0] if (ran.out or ran.err).strip() else path
        return _note.ok("program", f"{camera}: {version[:60]}", camera=camera)
    return _note.error(
        "program_fails",
        f"{camera}: {path} {flag} does not run: {ran.said if ran else 'it is gone'}",
        "install it again; a library that is missing comes with its package",
        camera=camera,
    )


def gst_elements(command: Sequence[str]) -> list[str]:
    """The elements that a gst-launch-1.0 command is made of.

    >>> gst_elements(["gst-launch-1.0", "-q", "v4l2src", "device=/dev/video0", "!", "video/x-raw", "!", "fdsink"])
    ['v4l2src', 'fdsink']
    """
    words = " ".join(command[1:]).split()
    heads = [
        word for before, word in zip(["!", *words], words, strict=False) if before == "!" or before.startswith("-")
    ]
    return list(dict.fromkeys(word for word in heads if re.fullmatch(r"[a-z][a-z0-9_-]*", word)))


def _elements(system: System, camera: PipeCamera) -> Iterator[Finding]:
    if Path(camera.command[0]).name != "gst-launch-1.0" or system.which("gst-inspect-1.0") is None:
        return
    absent = []
    for element in gst_elements(camera.command)[:20]:
        ran = system.run(["gst-inspect-1.0", "--exists", element], 8)
        if ran is not None and ran.code == 1:
            absent.append(element)
    if absent:
        yield _note.error(
            "no_element",
            f"{camera.id}: GStreamer here has no {', '.join(absent)}",
            "install the plug-ins that bring it: gstreamer1.0-plugins-good, -bad, gstreamer1.0-libcamera, on a Jetson "
            "nvidia-l4t-gstreamer",
            camera=camera.id,
            elements=absent,
        )


def _named_devices(system: System, camera: PipeCamera) -> Iterator[Finding]:
    for device in dict.fromkeys(re.findall(r"/dev/(?:v4l/|video)[^\s,!\"']*", " ".join(camera.command))):
        if not system.exists(device):
            yield missing_finding(system, camera.id, device)
        else:
            yield from _name(system, camera.id, device)
