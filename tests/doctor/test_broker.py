"""The way to a real broker, with one thing wrong at a time."""

from __future__ import annotations

import http.server
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edge.config import Config, Mqtt, SimulatedCamera, Station
from edge.doctor import broker
from edge.doctor.context import Context
from edge.doctor.system import System
from tests.brokers import Broker, Reader, free_port, needs_mosquitto
from tests.doctor.boxes import codes, wrong
from tests.doctor.pki import Authority

pytestmark = needs_mosquitto


def look(**settings):
    mqtt = Mqtt(**{"host": "127.0.0.1", **settings})
    config = Config(camera=[SimulatedCamera(id="a")], station=Station(site="plant", line="smt1", node="aoi"), mqtt=mqtt)
    found = list(broker.check(Context(System(), config)))
    assert all(f.fix for f in found if f.severity in ("error", "warning", "unknown"))
    return found


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"))


@contextmanager
def tls_broker(folder: Path, authority: Authority, server: tuple[Path, Path], *lines: str) -> Iterator[Broker]:
    certificate, key = server
    with Broker(folder, [f"cafile {authority.file}", f"certfile {certificate}", f"keyfile {key}", *lines]) as running:
        yield running


def test_a_broker_that_lets_everybody_in(tmp_path: Path) -> None:
    with Broker(tmp_path) as running:
        found = look(port=running.port)
        assert wrong(found) == []
        assert {"reached", "logged_in", "rights"} <= set(codes(found))
        assert "edge-aoi-doctor" in running.log() and "edge-aoi " not in running.log()


def test_a_wrong_port_names_the_one_that_answers(tmp_path: Path, monkeypatch) -> None:
    with Broker(tmp_path) as running:
        monkeypatch.setattr(broker, "USUAL_PORTS", (running.port,))
        found = codes(look(port=free_port()))["refused"]
    assert f"port {running.port} of it does answer" in found.fix


def test_no_broker_at_all(monkeypatch) -> None:
    monkeypatch.setattr(broker, "USUAL_PORTS", ())
    assert "systemctl status mosquitto" in codes(look(port=free_port()))["refused"].fix


def test_a_name_that_nobody_knows() -> None:
    found = codes(look(host="broker.invalid"))
    assert found["unknown_name"].severity == "error" and "broker.invalid" in found["unknown_name"].text


def test_a_broker_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(broker, "STEP_S", 0.5)
    with Broker(tmp_path) as running:
        running.freeze()
        try:
            assert wrong(look(port=running.port)) == ["error:no_answer"]
        finally:
            running.thaw()


def test_a_host_that_swallows_everything(monkeypatch) -> None:
    """As behind a firewall that drops: nobody takes the connection, nobody refuses it."""
    monkeypatch.setattr(broker, "STEP_S", 0.5)
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        found = codes(look(port=full.getsockname()[1]))["unreachable"]
        for each in waiting:
            each.close()
    assert "did not answer within 0.5 s" in found.text and "firewall" in found.fix


def test_something_that_is_no_broker(monkeypatch) -> None:
    monkeypatch.setattr(broker, "STEP_S", 0.5)
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert len(wrong(look(port=server.server_port))) == 1
    finally:
        server.shutdown()
        server.server_close()


def test_a_password_that_is_refused_and_one_that_is_asked_for(tmp_path: Path) -> None:
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(passwords), "line1", "right"], check=True, capture_output=True)
    with Broker(tmp_path / "b", ["allow_anonymous false", f"password_file {passwords}"]) as running:
        assert wrong(look(port=running.port, username="line1", password="right")) == []
        refused = codes(look(port=running.port, username="line1", password="wrong"))["not_let_in"]
        assert "line1" in refused.text and "wrong" not in refused.text
        assert "mqtt.username" in codes(look(port=running.port))["not_let_in"].fix


def test_rights_that_do_not_reach(tmp_path: Path) -> None:
    rights = tmp_path / "acl"
    rights.write_text("topic read other/#\n")
    with Broker(tmp_path / "b", [f"acl_file {rights}"]) as running:
        found = codes(look(port=running.port))["no_rights"]
        assert "edge/v1/plant/smt1/aoi/#" in found.fix
        assert "edge/v1/plant/smt1/aoi/doctor" in found.text
        rights.write_text("topic readwrite edge/v1/plant/smt1/aoi/#\n")
    with Broker(tmp_path / "c", [f"acl_file {rights}"]) as running:
        assert wrong(look(port=running.port)) == []


def test_a_password_file_that_is_not_there(tmp_path: Path) -> None:
    found = codes(look(port=1, username="a", password_file=str(tmp_path / "none")))["set_up"]
    assert "mqtt.password_file" in found.text and "check the path" in found.fix


# --- TLS ---


def test_good_certificates_and_their_dates(tmp_path: Path, authority: Authority) -> None:
    server = authority.sign("broker", "127.0.0.1")
    client, key = authority.sign("aoi", end_days=200)
    with tls_broker(tmp_path, authority, server, "require_certificate true") as running:
        found = look(port=running.port, tls=True, ca_file=str(authority.file), cert_file=str(client), key_file=str(key))
    assert wrong(found) == []
    days = {code: codes(found)[f"{code}_dates"].data["days_left"] for code in ("server", "client", "ca")}
    assert days == {
        "server": pytest.approx(365, abs=1),
        "client": pytest.approx(200, abs=1),
        "ca": pytest.approx(3000, abs=1),
    }


@pytest.mark.parametrize(
    ("dates", "names", "expected", "words"),
    [
        ({"begin_days": -400, "end_days": -12}, ["127.0.0.1"], ["error:server_expired"], "12 days ago"),
        ({"begin_days": 3}, ["127.0.0.1"], ["error:server_not_yet"], "believes that it is"),
        ({"end_days": 9}, ["127.0.0.1"], ["warning:server_expires"], "days more"),
        ({}, ["mosquitto.plant"], ["error:name_mismatch"], "for mosquitto.plant, and mqtt.host is 127.0.0.1"),
        ({"as_name_only": True}, ["127.0.0.1"], ["error:name_mismatch"], "common name only"),
    ],
)
def test_a_server_certificate_that_is_wrong(tmp_path: Path, authority, dates, names, expected, words) -> None:
    server = authority.sign("broker", *names, **dates)
    with tls_broker(tmp_path, authority, server) as running:
        found = look(port=running.port, tls=True, ca_file=str(authority.file))
    assert wrong(found) == expected
    assert words in codes(found)[expected[0].partition(":")[2]].text


def test_an_authority_that_this_box_does_not_know(tmp_path: Path, authority: Authority) -> None:
    other = Authority(tmp_path / "other", "Office CA")
    with tls_broker(tmp_path / "b", authority, authority.sign("broker", "127.0.0.1")) as running:
        found = codes(look(port=running.port, tls=True, ca_file=str(other.file)))["server_not_trusted"]
        assert "signed by Plant CA" in found.text and "'Plant CA'" in found.fix
        assert "system's list" in codes(look(port=running.port, tls=True))["server_not_trusted"].text


def test_an_authority_that_has_expired(tmp_path: Path) -> None:
    old = Authority(tmp_path / "old", "Old CA", begin_days=-4000, end_days=-3)
    with tls_broker(tmp_path / "b", old, old.sign("broker", "127.0.0.1")) as running:
        found = look(port=running.port, tls=True, ca_file=str(old.file))
    assert "error:ca_expired" in wrong(found)
    assert "server_expired" not in codes(found)  # the server's own is well


def test_a_client_certificate_that_is_wanted_refused_or_expired(tmp_path: Path, authority: Authority) -> None:
    server = authority.sign("broker", "127.0.0.1")
    stranger = Authority(tmp_path / "other", "Office CA").sign("stranger")
    expired = authority.sign("late", begin_days=-90, end_days=-1)
    with tls_broker(tmp_path / "b", authority, server, "require_certificate true") as running:
        use = {"port": running.port, "tls": True, "ca_file": str(authority.file)}
        assert "error:client_certificate_wanted" in wrong(look(**use))
        found = look(**use, cert_file=str(stranger[0]), key_file=str(stranger[1]))
        assert wrong(found) == ["error:client_certificate_refused"]
        found = look(**use, cert_file=str(expired[0]), key_file=str(expired[1]))
        assert wrong(found) == ["error:client_certificate_refused", "error:client_expired"]


def test_tls_where_there_is_none_and_none_where_there_is(tmp_path: Path, authority: Authority) -> None:
    with Broker(tmp_path / "plain") as running:
        assert wrong(look(port=running.port, tls=True, ca_file=str(authority.file))) == ["error:tls_failed"]
    with tls_broker(tmp_path / "b", authority, authority.sign("broker", "127.0.0.1")) as running:
        found = look(port=running.port)
        assert wrong(found) == ["error:no_answer"] and "mqtt.tls" in codes(found)["no_answer"].fix


def test_files_that_are_no_certificates(tmp_path: Path, authority: Authority) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("nothing of that kind\n")
    assert "mqtt.ca_file" in codes(look(port=1, tls=True, ca_file=str(junk)))["set_up"].text
    certificate, _ = authority.sign("aoi")
    _, other_key = authority.sign("aoi2")
    use = {"port": 1, "tls": True, "ca_file": str(authority.file), "cert_file": str(certificate)}
    assert "mqtt.cert_file" in codes(look(**use, key_file=str(other_key)))["set_up"].text


def test_a_password_in_clear_is_worth_knowing(monkeypatch) -> None:
    settings = Mqtt(host="10.0.0.9", username="line1", password="x")
    assert [f.code for f in broker._plain_password(settings)] == ["password_in_clear"]
    local = Mqtt(host="127.0.0.1", username="line1", password="x")
    assert list(broker._plain_password(local)) == []


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    with Broker(tmp_path) as running:
        look(port=running.port)
        until = time.monotonic() + 5
        while "Client edge-aoi-doctor disconnected" not in running.log() and time.monotonic() < until:
            time.sleep(0.05)
        assert "edge-aoi-doctor disconnected" in running.log()
        reader = Reader(running.port)  # what was said is not kept for whoever comes later
        reader.publish("end", b"")
        assert [heard.topic for heard in reader.wait_for("end")] == ["end"]
        assert reader.heard[0].topic == "end"
        reader.close()
