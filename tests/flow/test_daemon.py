"""The whole daemon as its own process, against a real mosquitto."""

import contextlib
import json
import os
import random
import shutil
import socket
import time

import cv2
import numpy as np
import pytest

from edge.capture.simulated import SimulatedSource
from edge.config import SimulatedCamera
from tests.brokers import Broker, needs_mosquitto, wait_until
from tests.disks import small_disk
from tests.flow.plc_rig import outcomes
from tests.flow.rig import Client, Daemon

SIMULATED = '[[camera]]\nid = "cam1"\nsource = "simulated"\nfps = 10.0\n'


def folder_camera(path, fps=4.0, loop="false"):
    return f'[[camera]]\nid = "cam1"\nsource = "folder"\npath = "{path}"\nfps = {fps}\nloop = {loop}\n'


@pytest.fixture(scope="module")
def boards(tmp_path_factory):
    """A dozen drawn boards as files."""
    folder = tmp_path_factory.mktemp("boards")
    source = SimulatedSource(SimulatedCamera(id="draw", fps=1000.0, fault_rate=0.0))
    source.open()
    for i in range(12):
        cv2.imwrite(str(folder / f"board{i:02}.png"), source.read(5.0).image)
    return folder


@pytest.fixture
def broker(tmp_path):
    with Broker(tmp_path / "broker") as running:
        yield running


@pytest.fixture
def client(broker):
    connected = Client(broker.port)
    yield connected
    connected.close()


@pytest.fixture
def make_daemon(tmp_path):
    made = []

    def make(*arguments, **keywords):
        daemon = Daemon(tmp_path, *arguments, **keywords)
        made.append(daemon)
        return daemon

    yield make
    for daemon in made:
        daemon.end()


pytestmark = needs_mosquitto


def last_health(client):
    return client.json("/health")[-1]


def test_every_image_of_a_folder_becomes_one_verdict(boards, broker, client, make_daemon):
    daemon = make_daemon(broker.port, folder_camera(boards)).start()
    assert daemon.wait() == 0, daemon.log()
    wait_until(lambda: len(client.json("/cam1/result")) == 12, 10, "12 results")
    results = client.json("/cam1/result")
    assert [r["name"] for r in results] == [f"board{i:02}.png" for i in range(12)]
    assert [r["part"] for r in results] == list(range(1, 13))
    seqs = sorted(client.durable())
    assert seqs == list(range(1, len(seqs) + 1)), "the durable stream has no gap"
    health = last_health(client)
    assert health["balanced"] and health["ledger"]["triggers"] == 12 and health["in_flight"] == 0
    assert [s["state"] for s in client.json("/edge/state")][-1] == "offline"
    assert client.json("/info")[-1]["bundle"].startswith("pcb ")
    assert "Traceback" not in daemon.log()


def test_images_are_published_as_jpeg_with_boxes(boards, broker, client, make_daemon):
    daemon = make_daemon(broker.port, folder_camera(boards, loop="true"), more="image_every_s = 0.2").start()
    wait_until(lambda: client.raw("/cam1/image"), 30, "an image")
    picture = cv2.imdecode(np.frombuffer(client.raw("/cam1/image")[0], np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (664, 640, 3)
    assert daemon.stop() == 0


def test_refused_frames_are_retakes_with_an_alarm(tmp_path, broker, client, make_daemon):
    folder = tmp_path / "blurred"
    folder.mkdir()
    for i in range(6):
        cv2.imwrite(str(folder / f"{i}.png"), np.tile(np.linspace(40, 200, 640).astype(np.uint8), (640, 1)))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[gate]\nsharpness_min = 50.0\n")
    daemon = make_daemon(broker.port, folder_camera(folder))
    daemon.config.write_text(daemon.config.read_text().replace("[paths]", f'[paths]\nrecipe = "{recipe}"'))
    assert daemon.start().wait() == 0, daemon.log()
    wait_until(lambda: len(client.json("/cam1/reject")) == 6, 10, "6 rejects")
    reject = client.json("/cam1/reject")[0]
    assert reject["cause"] in ("blur", "motion", "defocus") and reject["limit"] == 50.0 and reject["measured"] < 5
    assert reject["advice"]
    assert {r["verdict"] for r in client.json("/cam1/result")} == {"RETAKE"}
    assert client.json("/alarm/refusing_cam1")[0]["severity"] == "warning"


def test_what_cannot_be_judged_is_a_named_loss(tmp_path, boards, broker, client, make_daemon):
    folder = tmp_path / "mixed"
    folder.mkdir()
    good = cv2.imread(str(boards / "board00.png"), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(folder / "1_good.png"), good)
    cv2.imwrite(str(folder / "2_deep.png"), good.astype(np.uint16) * 256)
    cv2.imwrite(str(folder / "3_alpha.png"), np.dstack([good, good, good, good]))
    whole = cv2.imencode(".jpg", good)[1].tobytes()
    (folder / "4_cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "5_text.png").write_text("not an image")
    cv2.imwrite(str(folder / "6_wide.png"), good[:200])
    daemon = make_daemon(broker.port, folder_camera(folder, fps=5.0)).start()
    assert daemon.wait() == 0, daemon.log()
    wait_until(lambda: client.json("/edge/state")[-1]["state"] == "offline", 10, "the last word")
    health = last_health(client)
    assert health["ledger"]["losses"]["capture_fault"] == 4, daemon.log()
    assert sum(health["ledger"]["verdicts"].values()) == 2 and health["balanced"]
    texts = " ".join(alarm["text"] for alarm in client.json("/alarm/format_cam1") + client.json("/alarm/capture_cam1"))
    assert "uint16" in texts and "4_cut.jpg" in texts and "5_text.png" in texts
    assert "Traceback" not in daemon.log()


def test_verdicts_wait_for_the_broker_over_a_restart(tmp_path, boards, make_daemon):
    broker = Broker(tmp_path / "broker")
    daemon = make_daemon(broker.port, folder_camera(boards))  # nobody listens there yet
    assert daemon.start().wait() == 0
    assert len(daemon.outbox_rows()) >= 12, "nobody has heard them yet"
    with broker:
        client = Client(broker.port)
        assert daemon.start().wait() == 0
        wait_until(lambda: len(client.json("/cam1/result")) == 24, 15, "the results of both runs")
        client.close()
    assert [r["part"] for r in client.json("/cam1/result")] == list(range(1, 25))
    seqs = sorted(client.durable())
    assert seqs == list(range(1, len(seqs) + 1))


def parts_of(client):
    return {r["part"] for r in client.json("/cam1/result")}


def settled(daemon):
    """Parts whose row is on the disk and not void; of the last row nobody knows yet whether its verdict was stored."""
    rows = outcomes(daemon.state)
    return {part for part, outcome in rows.items() if outcome != "void"} - {max(rows, default=0)}


def kill_at_random(daemon, broker, times, seed):
    """Kill the daemon again and again; every part it ever settled must be with the broker's client or on disk."""
    client, rng = Client(broker.port), random.Random(seed)
    for i in range(times):
        daemon.start()
        daemon.wait_log("first verdict", times=i + 1)
        time.sleep(rng.uniform(0.0, 1.5))
        daemon.kill()
        on_disk = {r["part"] for r in daemon.outbox_rows() if r["schema"] == "edge.result.v1"}
        # What the broker has acknowledged may still be on its way to the client.
        due = settled(daemon) - on_disk
        wait_until(lambda due=due: due <= parts_of(client), 10, f"every part after kill {i + 1}")
    daemon.start()
    daemon.wait_log("first verdict", times=times + 1)
    assert daemon.stop() == 0, daemon.log()
    health = last_health(client)
    results = client.json("/cam1/result")
    client.close()
    assert health["balanced"] and health["in_flight"] == 0
    rows = {part for part, outcome in outcomes(daemon.state).items() if outcome != "void"}
    assert {r["part"] for r in results} == rows, "each part has its row, and each row its message"
    ids = {(r["part"], r["id"]) for r in results}
    assert len(ids) == len(rows), "no part number was ever given to two parts"
    results = ids
    assert sum(health["ledger"]["verdicts"].values()) == len(results), "the ledger counts exactly what was published"
    seqs = sorted(client.durable())
    assert seqs == list(range(1, len(seqs) + 1))
    return health


def test_kill_loses_no_committed_verdict(broker, make_daemon):
    health = kill_at_random(make_daemon(broker.port, SIMULATED), broker, times=3, seed=7)
    assert health["ledger"]["losses"]["shutdown"] <= 6, "at most what was in flight"


@pytest.mark.slow
def test_kill_thirty_times(broker, make_daemon):
    health = kill_at_random(make_daemon(broker.port, SIMULATED), broker, times=30, seed=11)
    print(json.dumps(health["ledger"]))


def test_a_second_daemon_on_the_same_state_is_refused(broker, make_daemon, tmp_path):
    daemon = make_daemon(broker.port, SIMULATED).start()
    daemon.wait_log("first verdict")
    other = Daemon(tmp_path, broker.port, SIMULATED)
    other.log_path = tmp_path / "other.log"
    assert other.start().wait(20) == 2
    assert "another edge daemon" in other.log() and "Traceback" not in other.log()
    assert daemon.stop() == 0


def test_status_is_answered(broker, client, make_daemon):
    daemon = make_daemon(broker.port, SIMULATED).start()
    daemon.wait_log("first verdict")
    client.publish("edge/v1/site/line/edge/request/status", b'{"transaction": "t1"}')
    wait_until(lambda: client.json("/response/status"), 10, "an answer")
    answer = client.json("/response/status")[0]
    assert answer["transaction"] == "t1" and answer["ok"] and answer["data"]["balanced"] == "true"
    assert daemon.stop() == 0


def test_full_disk_costs_named_losses_and_heals(tmp_path, broker, client, make_daemon):
    with small_disk(tmp_path / "disk", megabytes=24) as disk:
        daemon = make_daemon(broker.port, SIMULATED)
        daemon.state = disk / "state"
        daemon.config.write_text(daemon.config.read_text().replace(str(tmp_path / "state"), str(daemon.state)))
        daemon.start()
        daemon.wait_log("first verdict")
        filler = disk / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 4096)
        daemon.wait_log("alarm outbox")
        wait_until(lambda: last_health(client)["ledger"]["losses"]["processing_fault"] > 0, 15, "a named loss")
        filler.unlink()
        daemon.wait_log("alarm outbox is over")
        assert daemon.stop() == 0, daemon.log()
        assert last_health(client)["balanced"]
        assert "Traceback" not in daemon.log()


def test_a_damaged_outbox_is_set_aside_and_counting_begins_anew(boards, broker, client, make_daemon):
    daemon = make_daemon(broker.port, folder_camera(boards))
    assert daemon.start().wait() == 0
    path = daemon.state / "outbox.db"
    path.write_bytes(b"no database" * 1000)
    before = max(client.durable())
    assert daemon.start().wait() == 0
    health = last_health(client)
    assert health["ledger"]["triggers"] == 12, "the verdicts of the first run are not told again as losses"
    assert health["ledger"]["losses"]["shutdown"] == 0 and health["balanced"]
    wait_until(lambda: client.json("/alarm/outbox_set_aside"), 10, "an alarm")
    assert max(client.durable()) > before, "numbers are never used twice"


def test_a_dead_camera_is_said_in_the_log_and_by_an_alarm_while_the_other_works(
    tmp_path, boards, broker, client, make_daemon
):
    dead = '[[camera]]\nid = "dead"\nsource = "pipe"\ncommand = ["gst-lunch-1.0"]\nwidth = 64\nheight = 64\n'
    daemon = make_daemon(broker.port, folder_camera(boards, loop="true") + dead).start()
    daemon.wait_log("alarm camera_dead")
    assert "gst-lunch-1.0" in daemon.log()
    wait_until(lambda: client.json("/alarm/camera_dead"), 10, "an alarm")
    wait_until(lambda: len(client.json("/cam1/result")) > 3, 20, "verdicts of the other camera")
    assert daemon.stop() == 0 and "Traceback" not in daemon.log()


def test_a_file_with_a_name_in_another_encoding_is_judged(tmp_path, boards, broker, client, make_daemon):
    folder = tmp_path / "share"
    folder.mkdir()
    name = os.fsdecode(b"Pr\xfcfling.png")
    shutil.copy(boards / "board00.png", folder / name)
    (folder / os.fsdecode(b"kaputt\xfc.png")).write_bytes(b"cut")
    daemon = make_daemon(broker.port, folder_camera(folder)).start()
    assert daemon.wait() == 0, daemon.log()
    wait_until(lambda: client.json("/cam1/result"), 10, "a result")
    assert client.json("/cam1/result")[0]["name"] == "Pr?fling.png"


def test_a_stop_while_a_driver_hangs_is_no_crash(tmp_path, make_daemon):
    """A thread that comes back from a capture library while Python is torn down aborts the process."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        address = f"rtsp://127.0.0.1:{deaf.getsockname()[1]}/stream"
        cameras = "".join(f'[[camera]]\nid = "cam{i}"\nsource = "opencv"\naddress = "{address}"\n' for i in range(4))
        daemon = make_daemon(9, cameras).start()
        daemon.wait_log("camera cam3: opening")
        time.sleep(1.0)
        began = time.monotonic()
        assert daemon.stop() == 0, daemon.log()
        assert time.monotonic() - began < 9, "cameras are stopped together, not one after the other"
    assert "terminate called" not in daemon.log()


def test_drift_is_told_retained_and_goes_on_over_a_restart(tmp_path, broker, client, make_daemon, boards):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[drift]\nbaseline = "line"\n')
    daemon = make_daemon(broker.port, folder_camera(boards, fps=6.0))
    daemon.config.write_text(daemon.config.read_text().replace("[paths]", f'[paths]\nrecipe = "{recipe}"'))
    for run in (1, 2):
        assert daemon.start().wait() == 0, daemon.log()
        wait_until(lambda run=run: len(client.json("/cam1/drift")) >= run, 10, "the drift report")
    told = client.json("/cam1/drift")
    assert {message["status"] for message in told} == {"learning"}, "nobody knows yet, and that is what it says"
    assert "Nothing is known of drift" in told[-1]["text"] and told[-1]["wanted"] == 500
    kept = json.loads(next(daemon.state.glob("drift/*/*/state.json")).read_text())
    assert kept["cam1"]["drift"]["size"] == [640, 640] and kept["cam1"]["trend"]["seen"] >= 10
    late = Client(broker.port)  # a technician who comes later
    wait_until(lambda: late.json("/cam1/drift"), 10, "the retained drift report")
    late.close()
