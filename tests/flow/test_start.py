"""A daemon that cannot start says so in one message and exits with 2; one that can go on goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.brokers import Broker, needs_mosquitto, wait_until
from tests.flow.rig import PCB, REPOSITORY, Client, Daemon
from tests.small_bundles import small_bundle

SIMULATED = '[[camera]]\nid = "cam1"\nsource = "simulated"\n'


def edge(*arguments, timeout_s=60):
    command = [sys.executable, "-m", "edge", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, cwd=REPOSITORY)


def fails_with(finished, *words):
    said = finished.stderr
    assert finished.returncode == 2, said
    assert "Traceback" not in said and said.count("edge: ") == 1, said
    for word in words:
        assert word in said, said


@pytest.fixture
def bundle(tmp_path):
    return shutil.copytree(PCB, tmp_path / "pcb")


def run_with_bundle(tmp_path, bundle):
    return edge("run", "--config", Daemon(tmp_path, 9, SIMULATED, bundle=bundle).config)


def test_missing_bundle(tmp_path):
    fails_with(run_with_bundle(tmp_path, tmp_path / "nowhere"), "nowhere")


def test_no_bundle_installed(tmp_path):
    config = tmp_path / "edge.toml"
    config.write_text(f'[paths]\nstate = "{tmp_path}"\n{SIMULATED}')
    fails_with(edge("run", "--config", config), "edge bundle install")


def test_missing_model_file(tmp_path, bundle):
    for model in bundle.glob("*.nb"):
        model.unlink()
    fails_with(run_with_bundle(tmp_path, bundle), ".nb")


def test_altered_model_file(tmp_path, bundle):
    model = next(bundle.glob("*x86_64.int8.nb"))
    raw = bytearray(model.read_bytes())
    raw[len(raw) // 2] ^= 1
    model.write_bytes(raw)
    fails_with(run_with_bundle(tmp_path, bundle), model.name)


def test_unreadable_config(tmp_path):
    fails_with(edge("run", "--config", tmp_path / "none.toml"), "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[mqtt\nhost = 3")
    fails_with(edge("run", "--config", broken), "broken.toml")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    fails_with(edge("run", "--config", binary), "binary.toml")


def test_every_config_error_at_once(tmp_path):
    config = tmp_path / "edge.toml"
    config.write_text('[mqtt]\nprot = 1\nkeepalive_s = 2\n[[camera]]\nid = "a b"\nsource = "folde"\n')
    fails_with(edge("check-config", "--config", config), "prot", "port", "keepalive_s", "folder")


def test_state_that_cannot_be_written(tmp_path):
    (tmp_path / "state").write_text("a file, not a folder")
    fails_with(run_with_bundle(tmp_path, PCB), "state")


@pytest.fixture
def started(tmp_path):
    made = []

    def start(port, cameras, more=""):
        daemon = Daemon(tmp_path, port, cameras, more=more).start()
        made.append(daemon)
        return daemon

    yield start
    for daemon in made:
        daemon.end()


@needs_mosquitto
def test_an_empty_folder_is_said_and_waited_for(tmp_path, started):
    (tmp_path / "images").mkdir()
    camera = f'[[camera]]\nid = "cam1"\nsource = "folder"\npath = "{tmp_path / "images"}"\nretry_s = 0.2\n'
    with Broker(tmp_path / "broker") as broker:
        client = Client(broker.port)
        daemon = started(broker.port, camera)
        wait_until(lambda: any(s["state"] == "reconnecting" for s in client.json("/cam1/state")), 30, "a camera state")
        state = next(s for s in client.json("/cam1/state") if s["state"] == "reconnecting")
        assert str(tmp_path / "images") in state["detail"]
        assert daemon.stop() == 0
        client.close()
    assert "Traceback" not in daemon.log()


@needs_mosquitto
def test_a_refused_password_is_said_and_inspection_goes_on(tmp_path, started):
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", passwords, "edge", "right"], check=True, timeout=10)
    lines = ["allow_anonymous false", f"password_file {passwords}"]
    with Broker(tmp_path / "broker", lines) as broker:
        daemon = Daemon(tmp_path, broker.port, SIMULATED)
        text = daemon.config.read_text().replace("[mqtt]", '[mqtt]\nusername = "edge"\npassword = "wrong"')
        daemon.config.write_text(text)
        daemon.start()
        daemon.wait_log("password")
        daemon.wait_log("first verdict")
        assert daemon.stop() == 0
    assert len(daemon.outbox_rows()) > 0
    assert "Traceback" not in daemon.log()


def test_commands_explain_themselves():
    finished = edge("--help")
    assert finished.returncode == 0
    for command in ("run", "check-config", "replay", "calibrate", "bundle", "watch", "demo", "bench", "schema"):
        assert command in finished.stdout


def test_a_reader_that_goes_away_is_no_error():
    command = f"{sys.executable} -m edge schema | head -1"
    finished = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=30, cwd=REPOSITORY,
                              env=os.environ)  # fmt: skip
    assert finished.returncode == 0 and "Traceback" not in finished.stderr


def rewrite(bundle, **changes):
    """Change a manifest and keep it valid, as a careless tool would."""
    path = bundle / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# One class more than the model has: fewer would already contradict the recipe's thresholds.
MORE_CLASSES = ["open", "short", "mousebite", "spur", "copper", "pin-hole", "dent"]


@pytest.mark.parametrize("changes", [{"strides": [8, 16]}, {"classes": MORE_CLASSES}])
def test_a_bundle_whose_model_is_another_is_not_installed(tmp_path, changes):
    bundle = small_bundle(tmp_path / "small")
    rewrite(bundle, **changes)
    install = edge("bundle", "install", bundle, "--unsigned", "--state", tmp_path / "state", timeout_s=110)
    fails_with(install, "outputs of shapes", "keep the one you have")
    fails_with(edge("bundle", "status", "--state", tmp_path / "state"), "edge bundle install")


def test_an_installed_bundle_is_what_runs(tmp_path):
    state, bundle = tmp_path / "state", small_bundle(tmp_path / "small")
    fails_with(edge("bundle", "install", bundle, "--state", state), "nobody vouches for", "tools publish", "--unsigned")
    installed = edge("bundle", "install", bundle, "--unsigned", "--state", state, timeout_s=110)
    assert installed.returncode == 0 and "small 1 is active" in installed.stdout, installed.stderr
    status = edge("bundle", "status", "--state", state).stdout
    assert "active: small 1" in status and "nobody vouches for it" in status and "* detector.onnx" in status
    shutil.rmtree(bundle)
    config = tmp_path / "edge.toml"
    config.write_text(f'[paths]\nstate = "{state}"\n[mqtt]\nport = 9\n{SIMULATED}boards = 3\n')
    finished = edge("run", "--config", config)
    assert finished.returncode == 0 and "first verdict" in finished.stderr


def test_ctrl_c_during_the_start_is_a_clean_stop(tmp_path, bundle, started):
    daemon = Daemon(tmp_path, 9, SIMULATED, bundle=bundle).start()
    time.sleep(0.7)
    daemon.process.send_signal(signal.SIGINT)
    assert daemon.wait(20) == 0, daemon.log()
    assert "damaged" not in daemon.log() and "Traceback" not in daemon.log()


@pytest.mark.parametrize("arguments", [("--port", "99999"), ("--prefix", "a/#/b"), ("--seconds", "-1")])
def test_watch_checks_its_arguments(arguments):
    fails_with(edge("watch", *arguments))


def test_output_that_cannot_be_written_is_said():
    finished = subprocess.run(
        f"{sys.executable} -m edge check-config --sample > /dev/full", shell=True, capture_output=True, text=True,
        timeout=30, cwd=REPOSITORY,
    )  # fmt: skip
    assert finished.returncode == 2 and "Traceback" not in finished.stderr and "No space left" in finished.stderr
