"""Runtimes and kernels, permissions, the service, the config and updates."""

from __future__ import annotations

import http.server
import json
import os
import ssl
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from edge.config import Config, Mqtt, OpenCvCamera, Paths, Plc, Runtime, SimulatedCamera, Update
from edge.doctor import permissions, runtime, service, site, update
from edge.doctor.context import Context
from edge.doctor.system import Ran, System
from edge.event import UpdateOutcome
from tests.bundle.lab import Lab, serving
from tests.doctor.boxes import NOW, Box, arm_cpuinfo, codes, industrial_pc, jetson, raspberry, wrong
from tests.doctor.pki import Authority


def config(**more) -> Config:
    return Config(**{"camera": [SimulatedCamera(id="a")], **more})


# --- runtimes and kernels ---

PYTHON = os.path.basename(sys.executable)


def runtime_of(
    box: Box, installed: dict[str, str], monkeypatch, settings: Runtime | None = None, loads: Ran | None = None
):
    monkeypatch.setattr(runtime, "installed_runtimes", lambda: installed)
    providers = json.dumps(["CUDAExecutionProvider", "CPUExecutionProvider"])
    box.commands[PYTHON] = loads or Ran(0, f"{providers}\n", "")
    found = list(runtime.check(Context(box, config(runtime=settings or Runtime()))))
    assert all(f.fix for f in found if f.severity in ("error", "warning", "unknown"))
    return found


@pytest.mark.parametrize(("make", "core"), [(jetson, "Cortex-A78AE"), (raspberry, "Cortex-A76")])
def test_cores_that_paddle_lite_does_not_know(tmp_path: Path, monkeypatch, make, core) -> None:
    found = runtime_of(make(tmp_path), {"paddlelite": "2.13rc0"}, monkeypatch)
    assert wrong(found) == ["warning:dot_unused"]
    assert core in codes(found)["dot_unused"].text
    found = runtime_of(make(tmp_path), {"onnxruntime": "1.23.2"}, monkeypatch)
    assert wrong(found) == [] and codes(found)["dot_unused"].severity == "info"


@pytest.mark.parametrize(
    ("cpuinfo", "machine", "expected"),
    [
        (arm_cpuinfo("0xd41", 4), "aarch64", ["dot"]),
        (arm_cpuinfo("0xd08", 4).replace(" asimddp", ""), "aarch64", ["no_dot"]),
        (arm_cpuinfo("0xd41", 4).replace("CPU part\t: 0xd41\n", "", 1), "aarch64", ["dot_unused"]),
        (arm_cpuinfo("0xd41", 2) + arm_cpuinfo("0xd0b", 2), "aarch64", ["dot_unused"]),
        ("processor\t: 0\nflags\t\t: sse4_2\n", "x86_64", []),
        ("", "aarch64", []),
    ],
    ids=["known", "A72", "one core untold", "mixed", "x86", "unreadable"],
)
def test_dot_products_by_cpuinfo(cpuinfo, machine, expected) -> None:
    assert [f.code for f in runtime.dot_findings(runtime.cores_of(cpuinfo), True, machine)] == expected


def test_runtimes_that_do_not_load(tmp_path: Path, monkeypatch) -> None:
    box = industrial_pc(tmp_path)
    broken = Ran(1, "", "ImportError: libgomp.so.1: cannot open shared object file")
    assert (
        "libgomp" in codes(runtime_of(box, {"paddlelite": "2.13rc0"}, monkeypatch, loads=broken))["does_not_load"].text
    )
    crashed = Ran(-4, "", "")
    assert (
        "signal 4"
        in codes(runtime_of(box, {"onnxruntime": "1.23.2"}, monkeypatch, loads=crashed))["does_not_load"].text
    )
    assert wrong(runtime_of(box, {}, monkeypatch)) == ["error:no_runtime"]


def test_cores_that_onnx_runtime_cannot_count(tmp_path: Path, monkeypatch) -> None:
    box = raspberry(tmp_path)
    box.path("/sys/devices/system/cpu/possible").unlink()
    assert "error:cpu_files_hidden" in wrong(runtime_of(box, {"onnxruntime": "1.23.2"}, monkeypatch))
    assert "error:cpu_files_hidden" not in wrong(runtime_of(box, {"paddlelite": "2.13rc0"}, monkeypatch))


def test_settings_that_this_box_cannot_follow(tmp_path: Path, monkeypatch) -> None:
    box = industrial_pc(tmp_path)
    has = {"onnxruntime": "1.23.2"}
    assert wrong(runtime_of(box, has, monkeypatch, Runtime(prefer="paddlelite"))) == ["warning:preferred_missing"]
    tensorrt = Runtime(providers=["TensorrtExecutionProvider", "CPUExecutionProvider"])
    assert "Tensorrt" in codes(runtime_of(box, has, monkeypatch, tensorrt))["no_provider"].text
    cuda = Runtime(providers=["CUDAExecutionProvider"])
    assert codes(runtime_of(box, has, monkeypatch, cuda))["no_fallback"].severity == "info"
    assert wrong(runtime_of(box, has, monkeypatch, Runtime(threads=8))) == ["warning:too_many_threads"]
    assert "all_cores" in codes(runtime_of(box, has, monkeypatch, Runtime(threads=4)))


def test_python_releases() -> None:
    assert runtime.python_finding((3, 10, 13)).severity == runtime.python_finding((3, 12, 1)).severity == "ok"
    assert runtime.python_finding((3, 9, 2)).severity == runtime.python_finding((3, 13, 0)).severity == "error"


def test_the_real_runtimes_of_this_machine_load() -> None:
    found = [f for f in runtime.check(Context(System())) if f.code == "loads"]
    assert found and all(f.severity == "ok" for f in found)


# --- permissions ---


def service_box(root: Path, groups: str = "video:x:44:edge\ndialout:x:20:edge\n") -> Box:
    box = raspberry(root)
    box.put("/etc/passwd", "root:x:0:0::/root:/bin/bash\nedge:x:987:987::/var/lib/edge:/usr/sbin/nologin\n")
    box.put("/etc/group", f"root:x:0:\nedge:x:987:\n{groups}")
    state = box.path("/var/lib/edge")
    state.mkdir(parents=True)
    os.chown(state, 987, 987)
    state.chmod(0o750)
    return box


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="files of another user want root")
FULL = config(plc=Plc(port="/dev/ttyUSB0"), camera=[OpenCvCamera(id="c", address="/dev/video0")])


def permissions_of(box: Box, of: Config, path: Path | None = None):
    found = list(permissions.check(Context(box, of, path)))
    assert all(f.fix for f in found if f.severity in ("error", "warning", "unknown"))
    return found


@needs_root
def test_a_service_that_may_all_it_has_to(tmp_path: Path) -> None:
    found = permissions_of(service_box(tmp_path), FULL)
    assert wrong(found) == [] and {"state", "groups"} <= set(codes(found))


@needs_root
def test_groups_of_the_user_or_of_the_unit(tmp_path: Path) -> None:
    box = service_box(tmp_path, "video:x:44:\ndialout:x:20:pi\n")
    assert wrong(permissions_of(box, FULL)) == ["error:not_in_group", "error:not_in_group"]
    box.put("/etc/systemd/system/edge.service", "[Service]\nUser=edge\nSupplementaryGroups=video dialout\n")
    assert wrong(permissions_of(box, FULL)) == []


@needs_root
def test_devices_that_are_there_go_by_their_own_rights(tmp_path: Path) -> None:
    box = service_box(tmp_path, "video:x:44:edge\ndialout:x:20:edge\nscanner:x:700:\n")
    for name, group in (("/dev/video0", 44), ("/dev/ttyUSB0", 700)):
        file = box.put(name)
        os.chown(file, 0, group)
        file.chmod(0o660)
    found = codes(permissions_of(box, FULL))["not_in_group"]
    assert found.data["group"] == "scanner" and "/dev/ttyUSB0" in found.text and "/dev/video0" not in found.text


@needs_root
def test_a_config_that_the_service_cannot_read(tmp_path: Path) -> None:
    box = service_box(tmp_path)
    box.put("/etc/edge/edge.toml", "x").chmod(0o600)
    assert wrong(permissions_of(box, config(), Path("/etc/edge/edge.toml"))) == ["error:config_closed"]


@needs_root
def test_a_state_folder_of_somebody_else(tmp_path: Path) -> None:
    box = service_box(tmp_path)
    os.chown(box.path("/var/lib/edge"), 0, 0)
    assert "chown -R edge:edge" in codes(permissions_of(box, FULL))["state_not_writable"].fix
    os.chown(box.path("/var/lib/edge"), 987, 987)
    left_by_root = box.put("/var/lib/edge/outbox.db", "x")
    left_by_root.chmod(0o644)
    assert codes(permissions_of(box, FULL))["foreign_files"].data["files"] == ["outbox.db"]


@needs_root
def test_credentials(tmp_path: Path) -> None:
    box = service_box(tmp_path)
    for name, mode, owner in (("ca.pem", 0o644, 0), ("key.pem", 0o600, 0), ("password", 0o644, 987)):
        file = box.put(f"/etc/edge/{name}", "x")
        file.chmod(mode)
        os.chown(file, owner, owner)
    mqtt = Mqtt(
        username="a", password_file="/etc/edge/password", tls=True, ca_file="/etc/edge/ca.pem",
        cert_file="/etc/edge/none.pem", key_file="/etc/edge/key.pem",
    )  # fmt: skip
    found = permissions_of(box, config(mqtt=mqtt))
    assert wrong(found) == ["error:credential_missing", "error:credential_unreadable", "warning:credential_open"]
    assert codes(found)["credential_open"].data["key"] == "mqtt.password_file"
    unseen = config(mqtt=Mqtt(username="a", password_file="/run/credentials/edge.service/mqtt_password"))
    assert wrong(permissions_of(box, unseen)) == ["unknown:credential_unseen"]


@needs_root
def test_a_config_with_a_password_for_everybody(tmp_path: Path) -> None:
    box = service_box(tmp_path)
    file = box.put("/etc/edge/edge.toml", "x")
    secret = config(mqtt=Mqtt(username="a", password="hunter2"))
    file.chmod(0o644)
    found = codes(permissions_of(box, secret, Path("/etc/edge/edge.toml")))["config_open"]
    assert "mode 644" in found.text and "hunter2" not in str(found)
    file.chmod(0o640)
    os.chown(file, 0, 987)
    assert wrong(permissions_of(box, secret, Path("/etc/edge/edge.toml"))) == []
    file.chmod(0o644)
    assert wrong(permissions_of(box, config(), Path("/etc/edge/edge.toml"))) == []
    url = config(camera=[OpenCvCamera(id="c", address="rtsp://admin:hunter2@10.0.0.9/live")])
    assert "config_open" in codes(permissions_of(box, url, Path("/etc/edge/edge.toml")))


def test_without_the_service_it_is_said(tmp_path: Path) -> None:
    found = codes(permissions.check(Context(raspberry(tmp_path))))
    assert found["no_service_user"].severity == found["no_state"].severity == "info"
    missing = config(paths=Paths(state="/data/edge"))
    assert codes(permissions_of(raspberry(tmp_path), missing))["no_state"].severity == "error"


# --- the service ---

UNIT = {
    "LoadState": "loaded", "UnitFileState": "enabled", "ActiveState": "active", "SubState": "running",
    "Result": "success", "NRestarts": "0", "WatchdogUSec": "30s", "StatusText": "4711 parts", "ExecMainStatus": "0",
    "NeedDaemonReload": "no",
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"LoadState": "not-found"}, ["warning:not_installed"]),
        ({"UnitFileState": "disabled"}, ["warning:not_enabled"]),
        ({"ActiveState": "inactive", "SubState": "dead"}, ["error:stopped"]),
        ({"ActiveState": "failed", "Result": "watchdog"}, ["error:failed"]),
        ({"ActiveState": "failed", "Result": "start-limit-hit"}, ["error:gave_up"]),
        ({"ActiveState": "activating", "SubState": "auto-restart"}, ["warning:changing"]),
        ({"NRestarts": "7"}, ["warning:restarts"]),
        ({"NRestarts": "1"}, []),
        ({"WatchdogUSec": "0"}, ["warning:no_watchdog"]),
        ({"NeedDaemonReload": "yes"}, ["warning:not_reloaded"]),
    ],
)
def test_the_unit(changes, expected) -> None:
    found = list(service.unit_findings({**UNIT, **changes}))
    assert wrong(found) == expected
    assert all(f.fix for f in found if f.severity in ("error", "warning"))


def test_systemctl_is_asked_and_the_journal_looked_at(tmp_path: Path) -> None:
    box = raspberry(tmp_path, commands={"systemctl show": Ran(0, "\n".join(f"{k}={v}" for k, v in UNIT.items()), "")})
    box.put("/run/systemd/system/x")
    assert wrong(service.check(Context(box))) == ["warning:log_volatile"]
    box.put("/var/log/journal/x")
    found = codes(service.check(Context(box)))
    assert found["running"].text.endswith("4711 parts") and found["log"].severity == "ok"
    box.put("/etc/systemd/journald.conf", "[Journal]\n#Storage=auto\nStorage=volatile\n")
    assert wrong(service.check(Context(box))) == ["warning:log_volatile"]
    box.put("/etc/systemd/journald.conf.d/edge.conf", "[Journal]\nStorage=persistent\n")
    assert wrong(service.check(Context(box))) == []
    box.commands["systemctl show"] = Ran(1, "", "Failed to connect to bus")
    assert wrong(service.check(Context(box))) == ["unknown:not_told"]


def test_a_timer_that_looks_for_bundles(tmp_path: Path) -> None:
    shown = {"systemctl show edge.service": Ran(0, "\n".join(f"{k}={v}" for k, v in UNIT.items()), "")}
    box = raspberry(tmp_path, commands=shown)
    box.put("/run/systemd/system/x")
    box.put("/var/log/journal/x")
    of = config(update=Update(url="https://updates.plant/edge"))
    for state, expected in (("active", []), ("inactive", ["warning:timer_off"])):
        box.commands["systemctl show edge-update.timer"] = Ran(0, f"LoadState=loaded\nActiveState={state}\n", "")
        assert wrong(service.check(Context(box, of))) == expected
    assert wrong(service.check(Context(box, config()))) == []


def test_without_systemd_nothing_is_asked(tmp_path: Path) -> None:
    assert list(codes(service.check(Context(raspberry(tmp_path))))) == ["no_systemd"]


# --- the config ---


def test_the_config(tmp_path: Path) -> None:
    box, path = raspberry(tmp_path), Path("/etc/edge/edge.toml")
    assert [f.code for f in site.check(Context(box, config(), path))] == ["config"]
    assert [f.code for f in site.check(Context(box, None, path, "2 problems"))] == ["invalid"]
    assert [f.severity for f in site.check(Context(box, None, path, config_readable=False))] == ["unknown"]
    assert [f.code for f in site.check(Context(box))] == ["none"]
    recipe = config(paths=Paths(recipe="/etc/edge/recipe.toml"))
    assert wrong(site.check(Context(box, recipe, path))) == ["error:no_recipe"]
    box.put("/etc/edge/recipe.toml")
    assert wrong(site.check(Context(box, recipe, path))) == []


# --- updates ---

DAYS = 86_400.0


def root_box(folder: Path, root: bytes, accepted: bytes | None = None) -> Box:
    box = raspberry(folder)
    box.put("/etc/edge/trust/root.json", root)
    if accepted is not None:
        box.put("/var/lib/edge/trust/metadata/root.json", accepted)
    return box


def update_of(box: Box, settings: Update | None = None):
    found = list(update.check(Context(box, config(update=settings or Update()))))
    assert all(f.fix for f in found if f.severity in ("error", "warning", "unknown"))
    return found


@pytest.mark.parametrize(
    ("made_days_ago", "expected"), [(0, []), (660, ["warning:root_expires"]), (701, ["warning:root_expired"])]
)
def test_the_dates_of_the_root_of_trust(tmp_path: Path, made_days_ago, expected) -> None:
    lab = Lab(tmp_path / "repository", now=NOW - made_days_ago * DAYS)
    assert wrong(update_of(root_box(tmp_path / "box", lab.root_file.read_bytes()))) == expected


def test_a_newer_root_that_was_accepted_counts(tmp_path: Path) -> None:
    lab = Lab(tmp_path / "repository", now=NOW - 701 * DAYS)
    first = lab.root_file.read_bytes()
    lab.now = NOW
    lab.publish("root")
    box = root_box(tmp_path / "box", first, lab.data["root"])
    assert wrong(update_of(box)) == []
    assert codes(update_of(box))["root"].data["version"] == 2


def test_roots_that_nobody_should_believe(tmp_path: Path) -> None:
    lab = Lab(tmp_path / "repository", now=NOW)
    root = json.loads(lab.root_file.read_bytes())
    one_signature = {**root, "signatures": root["signatures"][:1]}
    found = update_of(root_box(tmp_path / "a", json.dumps(one_signature).encode()))
    assert wrong(found) == ["error:root_signatures"] and "signed by 1 of" in codes(found)["root_signatures"].text
    root["signed"]["version"] = 9
    assert wrong(update_of(root_box(tmp_path / "b", json.dumps(root).encode()))) == ["error:root_signatures"]
    for number, junk in enumerate((lab.data["targets"], b"[]", b"\xff\xfe", b"")):
        assert wrong(update_of(root_box(tmp_path / f"c{number}", junk))) == ["error:root_malformed"]


def test_a_root_made_for_development(tmp_path: Path) -> None:
    lab = Lab(tmp_path / "repository", development=True, now=NOW)
    box = root_box(tmp_path / "box", lab.root_file.read_bytes())
    assert wrong(update_of(box)) == ["error:development_root"]
    assert wrong(update_of(box, Update(development=True))) == ["warning:development_root"]


def test_without_a_root_signed_bundles_are_not_taken(tmp_path: Path) -> None:
    box = raspberry(tmp_path)
    assert codes(update_of(box))["no_root"].severity == "info"
    assert "warning:no_root" in wrong(update_of(box, Update(url="http://127.0.0.1:1/")))
    assert wrong(update.check(Context(box))) == []
    assert "no_way_in" in codes(update_of(box, Update(usb=False)))


def test_a_repository_on_a_real_server(tmp_path: Path) -> None:
    lab = Lab(tmp_path / "www", now=NOW)
    box = root_box(tmp_path / "box", lab.root_file.read_bytes())
    timestamp = tmp_path / "www" / "metadata" / "timestamp.json"
    fresh = timestamp.read_bytes()
    lab.now = NOW - 31 * DAYS
    lab.publish()
    stale = timestamp.read_bytes()
    timestamp.unlink()
    with serving(tmp_path / "www") as web:
        of = Update(url=web.address)
        seen = []
        for data in (None, b"<html>", stale, fresh):
            if data is not None:
                timestamp.write_bytes(data)
            seen.append(wrong(update_of(box, of)))
    assert seen == [["error:no_repository"], ["error:no_repository"], ["warning:repository_expired"], []]
    assert wrong(update_of(box, of)) == ["error:unreachable"]


def test_a_server_that_is_not_trusted(tmp_path: Path, authority_server) -> None:
    address, authority = authority_server
    lab = Lab(tmp_path / "repository", now=NOW)
    box = root_box(tmp_path / "box", lab.root_file.read_bytes())
    found = update_of(box, Update(url=address))
    assert wrong(found) == ["error:unreachable"] and "by TLS" in codes(found)["unreachable"].text
    assert wrong(update_of(box, Update(url=address, ca_file=str(authority.file)))) == ["error:no_repository"]
    assert wrong(update_of(box, Update(url=address, ca_file=str(tmp_path / "none.pem")))) == ["error:unreachable"]


@pytest.fixture
def authority_server(tmp_path: Path):
    authority = Authority(tmp_path / "pki")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*authority.sign("server", "127.0.0.1"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"https://127.0.0.1:{server.server_port}/", authority
        server.shutdown()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *_) -> None:
        pass


def test_the_last_outcome(tmp_path: Path) -> None:
    box = root_box(tmp_path / "box", Lab(tmp_path / "repository", now=NOW).root_file.read_bytes())
    for outcome, expected in (("nothing_new", []), ("refused", ["warning:last_failed"])):
        told = UpdateOutcome(outcome=outcome, code="expired", text="the timestamp has expired", ts=NOW - 3600)
        box.put("/var/lib/edge/update/outcome.json", msgspec.json.encode(told))
        found = update_of(box)
        assert wrong(found) == expected
    assert "the timestamp has expired" in codes(found)["last_failed"].text
    box.denied = ("/var/lib/edge",)
    assert wrong(update_of(box)) == ["unknown:outcome_unseen"]
