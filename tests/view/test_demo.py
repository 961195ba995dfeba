"""The demo from start to last word, with a small node in the daemon's place (its flow test runs the real one)."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from edge import config, recipe
from edge.errors import EdgeError
from edge.view import demo, demo_config, demo_plc
from edge.view.subscribe import Subscriber, Where
from tests.brokers import wait_until
from tests.flow.rig import PCB

pytest.importorskip("amqtt")

DEMO = """
import os
import sys
from pathlib import Path
from edge.view import demo
if os.environ["FAKE_NODE"] in ("silent", "deaf"):
    demo.STOP_LIMIT_S, demo.FIRST_VERDICT_LIMIT_S = 2.0, 2.0 if os.environ["FAKE_NODE"] == "silent" else 60.0
seconds = float(sys.argv[1]) if sys.argv[1] else None
node = [sys.executable, "-m", "tests.view.fake_node"]
plc = os.environ.get("FAKE_PLC")
sys.exit(
    demo.demo(
        seconds, Path("models/pcb"), 1, line=plc is not None, state=Path(sys.argv[2]) if sys.argv[2] else None,
        command=node, plc_command=[sys.executable, "-c", plc or ""],
    )
)
"""
# Stands for the simulated PLC: ends at SIGTERM and writes the report that it was asked for.
FAKE_PLC = """
import json, signal, sys
report = {"sent": 9, "answered": {"NG": 3, "OK": 5}, "refused": {"OVERRUN": 1}, "unanswered": 0, "contradictions": [],
          "answer_ms": {"count": 8, "p50": 41.2, "p99": 66.0, "p99.9": 71.3, "max": 88.1}, "more": 1}
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
print("the PLC speaks", flush=True)
while not asked:
    signal.sigtimedwait([], 0.05)
"""
WRITE = "open(sys.argv[sys.argv.index('--report') + 1], 'w').write(json.dumps(report))\n"


def start(
    seconds: float | None, state: Path | None, misbehaviour: str = "", plc: str | None = None, **more: object
) -> subprocess.Popen[str]:
    under = {} if plc is None else {"FAKE_PLC": plc}
    return subprocess.Popen(
        [sys.executable, "-c", DEMO, str(seconds or ""), str(state or "")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "FAKE_NODE": misbehaviour, **under}, **more,
    )  # type: ignore[call-overload]  # fmt: skip


def test_runs_for_its_seconds_and_ends_with_a_ledger_that_balances() -> None:
    child = start(1.0, None)
    out, err = child.communicate(timeout=30)
    assert child.returncode == 0, err
    lines = out.splitlines()
    assert re.fullmatch(r"starting a simulated line; its MQTT broker listens on 127\.0\.0\.1:\d+", lines[0])
    assert any(line.startswith("first verdict after ") for line in lines)
    ledger = re.fullmatch(
        r"triggers (\d+) = OK (\d+) \+ NG (\d+) \+ REVIEW 0 \+ RETAKE (\d+) \+ shutdown 1: balanced", lines[-2]
    )
    assert ledger is not None, lines[-2:]
    triggers, *outcomes = map(int, ledger.groups())
    assert triggers == sum(outcomes) + 1 > 10
    assert re.fullmatch(r"messages 1\.\.(\d+): all \1 held, no gap", lines[-1])
    assert len([line for line in lines if re.search(r"edge part \d+ camera top (OK|NG|RETAKE)", line)]) == triggers - 1
    assert err == ""


@pytest.mark.skipif(not (PCB / "manifest.json").exists(), reason=f"there is no bundle {PCB}")
def test_with_the_real_daemon(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "edge", "demo", "--seconds", "3", "--bundle", str(PCB)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    ledger, proof = out.splitlines()[-2:]
    assert re.fullmatch(r"triggers \d+ = OK \d+ \+ NG \d+ \+ REVIEW \d+ \+ RETAKE \d+( \+ \w+ \d+)*: balanced", ledger)
    assert re.fullmatch(r"messages 1\.\.(\d+): all \1 held, no gap", proof)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_in_order(tmp_path: Path, number: signal.Signals) -> None:
    child = start(None, tmp_path)
    assert child.stdout is not None
    wait_until(lambda: "first verdict" in child.stdout.readline(), 20, "the first verdict")
    child.send_signal(number)
    out, err = child.communicate(timeout=20)
    assert (child.returncode, err) == (0, "")
    assert ": balanced" in out


@pytest.mark.parametrize(
    ("misbehaviour", "wanted", "reason"),
    [
        ("dies at once", ["ended by itself with exit code 2", "models/none has no manifest"], "its last line is shown"),
        ("dies later", ["ended by itself with exit code 7", "the disk is gone: put it back"], "in the middle"),
        ("silent", ["no verdict came within 2 s"], "it lives but judges nothing"),
        ("deaf", ["did not end within 2 s and was killed"], "it ignores SIGTERM"),
        ("no health", ["ended without telling its last ledger"], "nothing to balance is not balanced"),
        ("unbalanced", ["the ledger does not balance"], "the one promise is broken"),
    ],
)
def test_what_goes_wrong_is_said_with_the_log(
    tmp_path: Path, misbehaviour: str, wanted: list[str], reason: str
) -> None:
    child = start(0.6, tmp_path, misbehaviour)
    _, err = child.communicate(timeout=30)
    assert child.returncode == 1, reason
    for text in [*wanted, str(tmp_path / "daemon.log")]:
        assert text in err, f"{reason}: {text!r} not in {err!r}"
    assert "Traceback" not in err
    assert not left_over(tmp_path), "the node does not outlive the demo"


def test_under_a_plc_its_own_account_is_told_last(tmp_path: Path) -> None:
    child = start(0.6, tmp_path, plc=FAKE_PLC + WRITE)
    out, err = child.communicate(timeout=30)
    assert (child.returncode, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith(
        f"starting a simulated line under a simulated PLC on {tmp_path / 'plc'}; its MQTT broker"
    )
    assert any(re.search(r"edge part \d+ serial P\d+ trigger \d+ deadline, PLC told FAIL", line) for line in lines)
    assert re.fullmatch(r"messages 1\.\.(\d+): all \1 held, no gap", lines[-2])
    assert lines[-1] == (
        "the PLC: 9 triggers, 8 answered (NG 3, OK 5), 1 refused (OVERRUN 1), 0 unanswered; "
        "p50 41.2 ms, p99 66.0, max 88.1"
    )


@pytest.mark.parametrize(
    ("plc", "wanted", "reason"),
    [
        (
            "import sys; sys.exit('no pty here')",
            ["PLC ended by itself with exit code 1", "no pty here"],
            "cannot start",
        ),
        (FAKE_PLC + "report['unanswered'] = 2\n" + WRITE, ["2 unanswered", "not every trigger"], "the one promise"),
        (FAKE_PLC, ["ended without telling its account", "the PLC speaks"], "no report is no proof"),
    ],
)
def test_what_goes_wrong_with_the_plc_is_said(tmp_path: Path, plc: str, wanted: list[str], reason: str) -> None:
    child = start(0.3, tmp_path, plc=plc)
    out, err = child.communicate(timeout=30)
    assert child.returncode == 1, reason
    for text in wanted:
        assert text in out + err, f"{reason}: {text!r} not in {out + err!r}"
    assert str(tmp_path / "plc.log") in err, "where to read on"
    assert "Traceback" not in err
    assert not left_over(tmp_path), "the node does not outlive the demo"


@pytest.mark.skipif(not (PCB / "manifest.json").exists(), reason=f"there is no bundle {PCB}")
def test_a_line_with_the_real_daemon_under_the_real_simulator(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "edge", "demo", "--line", "--seconds", "1.5", "--bundle", str(PCB), "--state", tmp_path],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    out, err = child.communicate(timeout=90)
    assert child.returncode == 0, err
    ledger, proof, account = out.splitlines()[-3:]
    triggers = re.match(r"triggers (\d+) = .*: balanced$", ledger)
    told = re.match(
        r"the PLC: (\d+) triggers, (\d+) answered \(.*\)(, \d+ refused \(.*\))?, 0 unanswered; p50 ", account
    )
    assert triggers is not None, ledger
    assert told is not None, account
    assert triggers[1] == told[1], "each counts the same triggers"
    assert int(told[1]) >= 2, "two a second"
    assert re.fullmatch(r"messages 1\.\.(\d+): all \1 held, no gap", proof)
    assert len(re.findall(r"edge part \d+ serial P\d{6} trigger \d+ (OK|NG|REVIEW|RETAKE) ", out)) >= 1, out
    assert "line Ready, recipe pcb" in out


@pytest.mark.parametrize(
    ("unanswered", "contradictions", "good", "wanted"),
    [
        (0, [], True, "the PLC: 3 triggers, 3 answered (OK 3), 0 unanswered"),
        (1, [], False, "1 unanswered"),
        (0, ["trigger 3: OK, then NG"], False, "1 CONTRADICTIONS: trigger 3: OK, then NG"),
    ],
)
def test_an_account_is_good_when_each_trigger_came_to_one_end(unanswered, contradictions, good, wanted) -> None:
    account = demo_plc.Account(
        sent=3, answered={"OK": 3}, refused={}, unanswered=unanswered, contradictions=contradictions,
        answer_ms=demo_plc.Times(count=0),
    )  # fmt: skip
    assert account.is_good == good
    assert wanted in demo_plc.account_sentence(account)


@pytest.mark.parametrize("report", [b"", b"{", b"[1]", b"\xff", b'{"sent": 3}'])
def test_an_account_that_cannot_be_read_is_none(tmp_path: Path, report: bytes) -> None:
    (tmp_path / "plc.json").write_bytes(b'{"sent": 3, "of": "a run before"}')
    plc = demo_plc.SimulatedPlc(tmp_path, ["true"])
    assert plc.account() is None, "nothing is left of the run before"
    (tmp_path / "plc.json").write_bytes(report)
    assert plc.account() is None
    plc.child.stop()


def test_its_temporary_folder_goes_when_all_is_well_and_stays_when_not(tmp_path: Path) -> None:
    for misbehaviour, kept in (("", 0), ("dies at once", 1)):
        child = subprocess.Popen(
            [sys.executable, "-c", DEMO, "0.3", ""], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, "FAKE_NODE": misbehaviour, "TMPDIR": str(tmp_path)},
        )  # fmt: skip
        child.wait(30)
        assert len(list(tmp_path.glob("edge-demo-*"))) == kept, misbehaviour or "all well"


def test_killed_it_leaves_no_daemon_behind(tmp_path: Path) -> None:
    child = start(None, tmp_path)
    assert child.stdout is not None
    wait_until(lambda: "first verdict" in child.stdout.readline(), 20, "the first verdict")
    assert left_over(tmp_path)
    child.kill()
    child.communicate(timeout=10)
    wait_until(lambda: not left_over(tmp_path), 10, "the node to end")


def left_over(state: Path) -> list[int]:
    """Processes that run on this demo's config."""
    wanted = str(state / "edge.toml")
    return [p.pid for p in psutil.process_iter(["cmdline"]) if wanted in (p.info["cmdline"] or [])]


def test_a_reader_that_leaves_early_does_not_disturb_the_end(tmp_path: Path) -> None:
    child = start(None, tmp_path)
    assert child.stdout is not None
    wait_until(lambda: "first verdict" in child.stdout.readline(), 20, "the first verdict")
    child.stdout.close()
    assert child.wait(20) == 0
    assert child.stderr is not None
    said = child.stderr.read()
    assert ": balanced" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("name", ["plain", 'quo"ted \\ and ünïcode 🙂'])
def test_the_written_config_can_be_read_and_edited(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    settings = config.load(demo_config.write_config(folder, Path("models/pcb"), 7, config.Mqtt(port=4711)))
    assert settings.paths.state == str(folder / "state")
    assert settings.paths.bundle == str(Path("models/pcb").resolve())
    assert (settings.mqtt.port, settings.station.node) == (4711, demo_config.STATION.node)
    assert isinstance(settings.camera[0], config.SimulatedCamera)
    assert settings.camera[0].seed == 7


def test_the_config_of_a_line_under_a_plc_gives_every_moment_a_frame(tmp_path: Path) -> None:
    settings = config.load(demo_config.write_config(tmp_path, Path("models/pcb"), 7, config.Mqtt(port=4711), line=True))
    camera = settings.camera[0]
    assert settings.plc == config.Plc(port=str(tmp_path / "plc"))
    assert isinstance(camera, config.SimulatedCamera)
    assert 1000 / camera.fps / 2 < camera.window_ms, "a trigger between two frames has one within its window"
    loaded = recipe.load(tmp_path / "recipe.toml")
    assert loaded.takt_time_ms == loaded.answer_ms == 1000 / demo_plc.RATE
    assert camera.window_ms < loaded.takt_time_ms / 2, "and not one that could be its neighbour's"


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EdgeError, match="cannot be made: Not a directory; choose another with --state"):
        demo.demo(1.0, Path("models/pcb"), 1, state=tmp_path / "file" / "below")


def test_without_the_broker_package_it_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(EdgeError, match=r"pip install 'edge-inspection\[demo\]'"):
        demo.EmbeddedBroker()


def test_clients_may_connect_before_the_broker_has_started() -> None:
    broker = demo.EmbeddedBroker()
    with Subscriber(config.Mqtt(port=broker.port), Where()) as subscriber:
        time.sleep(0.2)
        broker.start()
        wait_until(lambda: subscriber.link.connected, 5, "the connection that waited")
        broker.stop()
        wait_until(lambda: not subscriber.link.connected, 5, "the broker's end to be noticed")
    broker.stop()
