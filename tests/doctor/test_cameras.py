"""Cameras of each kind, with a driver that answers as the kernel's do, and one thing wrong at a time."""

from __future__ import annotations

import errno
import socket
import struct
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.config import Config, FolderCamera, OpenCvCamera, PipeCamera, SimulatedCamera
from edge.doctor import cameras, network, v4l2
from edge.doctor.context import Context
from edge.doctor.system import Ran, System
from tests.doctor.boxes import Box, codes, industrial_pc, wrong

BY_ID = "/dev/v4l/by-id/usb-046d_HD_Pro_Webcam_C920_5E3F-video-index0"


class Driver:
    """Answers as uvcvideo does: formats, sizes and rates counted up until there is no more."""

    def __init__(self, formats: dict[str, dict[tuple[int, int], list[int]]], captures: bool = True) -> None:
        self.formats, self.captures = formats, captures

    def __call__(self, request: int, buffer: bytearray) -> int:
        if request == v4l2.QUERYCAP:
            buffer[0:8], buffer[16:27] = b"uvcvideo", b"HD Pro C920"
            node = 0x04200001 if self.captures else 0x04A00000
            struct.pack_into("=II", buffer, 84, 0x84A00001, node)
        elif request == v4l2.ENUM_FMT:
            index, _ = struct.unpack_from("=II", buffer)
            buffer[44:48] = self._nth(list(self.formats), index).encode()
        elif request == v4l2.ENUM_FRAMESIZES:
            (index,), code = struct.unpack_from("=I", buffer), bytes(buffer[4:8]).decode()
            struct.pack_into("=III", buffer, 8, v4l2.DISCRETE, *self._nth(list(self.formats[code]), index))
        elif request == v4l2.ENUM_FRAMEINTERVALS:
            index, _, width, height = struct.unpack_from("=IIII", buffer)
            rates = self.formats[bytes(buffer[4:8]).decode()][(width, height)]
            struct.pack_into("=III", buffer, 16, v4l2.DISCRETE, 1, self._nth(rates, index))
        else:
            raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")
        return 0

    @staticmethod
    def _nth(found: list, index: int):
        if index >= len(found):
            raise OSError(errno.EINVAL, "Invalid argument")
        return found[index]


C920 = Driver({"YUYV": {(640, 480): [30, 15], (2304, 1536): [2]}, "MJPG": {(1920, 1080): [30], (640, 480): [30]}})


def camera_box(root: Path, driver=C920, speed: int = 480, **more) -> Box:
    box = industrial_pc(root, ioctl=driver, **more)
    _plug(box, 0, BY_ID, "1-3", speed)
    return box


def _plug(box: Box, number: int, name: str, port: str, speed: int, bus: int = 1) -> None:
    usb = f"/sys/devices/pci0000:00/0000:00:14.0/usb{bus}/{port}"
    for file, value in {"speed": speed, "busnum": bus, "product": "HD Pro Webcam C920"}.items():
        box.put(f"{usb}/{file}", f"{value}\n")
    box.put(f"{usb}/{port}:1.0/video4linux/video{number}/name", "HD Pro Webcam C920\n")
    box.link(f"{usb}/{port}:1.0/video4linux/video{number}/device", f"{usb}/{port}:1.0")
    box.link(f"/sys/class/video4linux/video{number}", f"{usb}/{port}:1.0/video4linux/video{number}")
    box.put(f"/dev/video{number}")
    box.link(name, f"../../video{number}")


def look(box: System, *of):
    found = list(cameras.check(Context(box, Config(camera=list(of)))))
    assert all(f.fix for f in found if f.severity in ("error", "warning", "unknown"))
    return found


def usb(address: str = BY_ID, id: str = "cam1", **more) -> OpenCvCamera:
    return OpenCvCamera(id=id, address=address, **more)


def test_a_camera_that_is_well(tmp_path: Path) -> None:
    found = look(camera_box(tmp_path), usb(fourcc="MJPG", width=1920, height=1080, fps=30.0))
    assert wrong(found) == []
    assert codes(found)["format"].data == {
        "camera": "cam1", "card": "HD Pro C920", "driver": "uvcvideo", "formats": ["YUYV", "MJPG"],
    }  # fmt: skip
    assert "480 Mbit/s" in codes(found)["usb"].text


def test_what_the_driver_offers_is_read_whole(tmp_path: Path) -> None:
    offer = v4l2.ask(camera_box(tmp_path), BY_ID)
    assert offer.formats["YUYV"] == [v4l2.Size(640, 480, (30.0, 15.0)), v4l2.Size(2304, 1536, (2.0,))]
    assert offer.captures and offer.card == "HD Pro C920"


def test_free_sizes_count_up_to_the_largest(tmp_path: Path) -> None:
    def stepwise(request: int, buffer: bytearray) -> int:
        if request != v4l2.ENUM_FRAMESIZES:
            return C920(request, buffer)
        struct.pack_into("=IIIIIII", buffer, 8, 3, 32, 4056, 2, 32, 3040, 2)
        return 0

    offer = v4l2.ask(camera_box(tmp_path, stepwise), BY_ID)
    assert offer.has("YUYV", 1000, 700) and not offer.has("YUYV", 5000, 700)


def test_a_format_that_the_camera_lacks(tmp_path: Path) -> None:
    found = codes(look(camera_box(tmp_path), usb(fourcc="YUYV", width=1920, height=1080)))["format"]
    assert found.severity == "warning" and "MJPG 1920x1080" in found.text


def test_the_metadata_node_gives_no_pictures(tmp_path: Path) -> None:
    assert wrong(look(camera_box(tmp_path, Driver({}, captures=False)), usb())) == ["error:no_pictures"]


def test_an_unplugged_camera_is_told_with_what_is_there(tmp_path: Path) -> None:
    box = camera_box(tmp_path)
    found = codes(look(box, usb("/dev/v4l/by-id/usb-Other-video-index0")))["missing"]
    assert BY_ID in found.text and "dmesg" in found.fix
    box.path("/dev/video0").unlink()
    assert wrong(look(box, usb())) == ["error:missing"]


def test_no_camera_at_all(tmp_path: Path) -> None:
    assert "no camera at all" in codes(look(industrial_pc(tmp_path), usb()))["missing"].text


def test_a_name_that_may_change(tmp_path: Path) -> None:
    assert BY_ID in codes(look(camera_box(tmp_path), usb("/dev/video0")))["name_not_stable"].fix


def test_permission_and_busy_and_broken(tmp_path: Path) -> None:
    assert wrong(look(camera_box(tmp_path / "a", denied=(BY_ID,)), usb())) == ["error:no_permission"]

    def raising(number: int):
        def driver(_request: int, _buffer: bytearray) -> int:
            raise OSError(number, "says the driver")

        return driver

    assert wrong(look(camera_box(tmp_path / "b", raising(errno.EBUSY)), usb())) == ["unknown:busy"]
    assert wrong(look(camera_box(tmp_path / "c", raising(errno.ENODEV)), usb())) == ["error:not_v4l2"]


def test_usb_that_is_slow(tmp_path: Path) -> None:
    assert wrong(look(camera_box(tmp_path, speed=12), usb())) == ["error:usb_slow"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"fourcc": "YUYV", "width": 640, "height": 480, "fps": 30.0}, []),
        ({"fourcc": "YUYV", "width": 640, "height": 480, "fps": 60.0}, ["error:usb_bus_full"]),
        ({"fourcc": "MJPG", "width": 1920, "height": 1080, "fps": 30.0}, []),
        ({}, ["warning:usb_bus_shared"]),
    ],
)
def test_two_cameras_on_one_bus(tmp_path: Path, settings, expected) -> None:
    box = camera_box(tmp_path)
    second = BY_ID.replace("5E3F", "77AA")
    _plug(box, 2, second, "1-4", 480)
    assert wrong(look(box, usb(**settings), usb(second, "cam2", **settings))) == expected
    _plug(box, 2, second, "2-1", 480, bus=2)
    assert "usb_bus_full" not in codes(look(box, usb(**settings), usb(second, "cam2", **settings)))


# --- folders, files, streams, pipes ---


def test_folders_and_files(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8), np.uint8))
    box = System()
    assert codes(look(box, FolderCamera(id="f", path=str(tmp_path))))["images"].data["images"] == 1
    assert wrong(look(box, FolderCamera(id="f", path=str(tmp_path / "none")))) == ["error:no_images"]
    assert wrong(look(box, usb(str(tmp_path / "none.mp4")))) == ["error:no_file"]
    assert wrong(look(box, usb(str(tmp_path / "a.png")), SimulatedCamera(id="s"))) == []


def test_a_stream_that_answers_refuses_or_is_unknown() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        assert wrong(look(System(), usb(f"rtsp://admin:hunter2@127.0.0.1:{port}/live"))) == []
    found = look(System(), usb(f"rtsp://admin:hunter2@127.0.0.1:{port}/live"))
    assert wrong(found) == ["error:stream_refused"]
    assert wrong(look(System(), usb("rtsp://camera.invalid/live"))) == ["error:stream_name"]
    found = look(System(), usb("rtsp://admin:hunter2@/live"))
    assert wrong(found) == ["unknown:stream_unknown"] and "hunter2" not in str(found)


def test_cameras_are_looked_at_side_by_side(tmp_path: Path, monkeypatch) -> None:
    release = threading.Event()

    def stuck(camera):
        release.wait(60)
        return cameras._note.ok("stream", camera.id)

    monkeypatch.setattr(cameras, "_stream", stuck)
    monkeypatch.setattr(cameras, "EACH_S", 0.3)
    hanging = [usb(f"rtsp://10.0.0.{n}/live", f"cam{n}") for n in range(4)]
    try:
        found = look(System(), *hanging, SimulatedCamera(id="s"))
    finally:
        release.set()
    assert [f.code for f in found] == ["check_timed_out"] * 4 + ["simulated"]


def test_a_stream_that_does_not_answer() -> None:
    assert "PoE" in cameras._unreachable("cam1", "10.0.0.9", 554, TimeoutError()).fix
    no_route = OSError(errno.EHOSTUNREACH, "No route to host")
    assert "No route to host" in cameras._unreachable("cam1", "10.0.0.9", 554, no_route).text


def pipe(*command: str) -> PipeCamera:
    return PipeCamera(id="p", command=list(command), width=8, height=8)


def test_pipes_of_real_programs() -> None:
    assert wrong(look(System(), pipe("no-such-grabber", "-x"))) == ["error:no_program"]
    assert wrong(look(System(), pipe(sys.executable, "-c", "pass"))) == []
    found = look(System(), pipe("sleep", "1000"))  # what is not known is not run
    assert wrong(found) == []


def test_pipes_with_what_is_missing_in_them(tmp_path: Path) -> None:
    commands = {
        "gst-launch-1.0 --version": Ran(0, "gst-launch-1.0 version 1.20.3\n", ""),
        "gst-inspect-1.0 --exists": Ran(0, "", ""),
        "gst-inspect-1.0 --exists nvarguscamerasrc": Ran(1, "", ""),
    }
    box = camera_box(tmp_path, commands=commands)
    argus = pipe("gst-launch-1.0", "-q", "nvarguscamerasrc sensor-id=0 ! nvvidconv ! video/x-raw,format=GRAY8 ! fdsink")
    assert codes(look(box, argus))["no_element"].data["elements"] == ["nvarguscamerasrc"]
    gone = pipe("gst-launch-1.0", "-q", "v4l2src", "device=/dev/video7", "!", "fdsink")
    assert codes(look(box, gone))["missing"].data["address"] == "/dev/video7"
    assert wrong(look(box, pipe("gst-launch-1.0", "v4l2src", f"device={BY_ID}", "!", "fdsink"))) == []


def test_a_program_that_does_not_run(tmp_path: Path) -> None:
    said = "ffmpeg: error while loading shared libraries: libavdevice.so.58: cannot open shared object file"
    box = camera_box(tmp_path, commands={"ffmpeg": Ran(127, "", said)})
    assert "libavdevice" in codes(look(box, pipe("ffmpeg", "-i", "x")))["program_fails"].text


def test_without_a_config_cameras_are_listed(tmp_path: Path) -> None:
    found = codes(cameras.check(Context(camera_box(tmp_path))))
    assert BY_ID in found["present"].text


# --- the network that some of them need ---

GIGE = pipe("gst-launch-1.0", "aravissrc", "camera-name=Basler-acA", "!", "fdsink")


def network_box(root: Path, rmem: int = 212_992, mtu: int = 1500, speed: int = 1000, state: str = "up") -> Box:
    box = industrial_pc(root)
    box.put("/proc/sys/net/core/rmem_max", f"{rmem}\n")
    box.put("/proc/sys/net/core/rmem_default", "212992\n")
    box.put("/proc/net/snmp", "Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors\nUdp: 9 1 0 8 0\n")
    for name in ("enp1s0", "lo", "docker0"):
        values = {"mtu": mtu, "speed": speed, "operstate": state, "statistics/rx_crc_errors": 0}
        for file, value in values.items():
            box.put(f"/sys/class/net/{name}/{file}", f"{value}\n")
    return box


def net(box: Box, *of):
    return list(network.check(Context(box, Config(camera=list(of)))))


def test_buffers_and_jumbo_frames_for_gige(tmp_path: Path) -> None:
    found = net(network_box(tmp_path), GIGE)
    assert wrong(found) == ["warning:buffers_small"]
    assert "sysctl --system" in codes(found)["buffers_small"].fix
    assert "enp1s0" in codes(found)["no_jumbo"].text and "docker0" not in str(found)
    assert wrong(net(network_box(tmp_path / "b", rmem=33_554_432, mtu=9000), GIGE)) == []


def test_no_advice_where_no_camera_needs_it(tmp_path: Path) -> None:
    box = network_box(tmp_path)
    assert list(codes(net(box, SimulatedCamera(id="a")))) == ["no_network_camera"]
    assert list(codes(net(box, usb("rtsp://10.0.0.9/live")))) == ["link"]


def test_packets_lost_damaged_frames_and_slow_links(tmp_path: Path) -> None:
    box = network_box(tmp_path, rmem=33_554_432, mtu=9000, speed=100)
    box.put("/proc/net/snmp", "Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors\nUdp: 9 1 0 8 4711\n")
    box.put("/sys/class/net/enp1s0/statistics/rx_crc_errors", "12\n")
    assert wrong(net(box, GIGE)) == ["warning:cable", "warning:packets_lost", "warning:slow_link"]
    assert wrong(net(network_box(tmp_path / "b", state="down"), usb("rtsp://10.0.0.9/live"))) == ["error:no_link"]
