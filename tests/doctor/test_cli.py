"""The command as people and fleets call it, on this very machine; and that its codes do not change."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge import cli, cli_doctor
from edge.doctor import subjects, visit
from edge.doctor.system import System
from tests.brokers import free_port
from tests.doctor.boxes import jetson, raspberry

ROOT = Path(__file__).parents[2]
CODES = Path(__file__).with_name("codes.txt")
MAKERS = ("ok", "info", "warning", "error", "unknown")


def edge(*arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*prefix, sys.executable, "-m", "edge", "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=ROOT)


def config_file(folder: Path, text: str = "") -> Path:
    file = folder / "edge.toml"
    camera = '[[camera]]\nid = "cam1"\nsource = "simulated"\n'
    paths = "" if "[paths]" in text else f'[paths]\nstate = "{folder}"\n'
    file.write_text(camera + paths + text)
    return file


def test_the_subjects_of_the_command_are_those_of_the_checks() -> None:
    assert tuple(subjects.CHECKS) == cli_doctor.SUBJECTS


def test_this_machine_without_a_config() -> None:
    done = edge("--json")
    told = json.loads(done.stdout)
    assert done.returncode == told["exit_code"] and done.stderr == ""
    assert told["schema"] == "edge.doctor.v1"
    assert set(told["left_out"]) == {"broker", "network"}
    looked_at = {finding["subject"] for finding in told["findings"]}
    assert looked_at >= {"config", "clock", "disk", "memory", "thermals", "runtime", "service"}
    assert not [f for f in told["findings"] if f["code"] in ("check_failed", "check_timed_out")]


def test_this_machine_with_a_config_and_an_absent_broker(tmp_path: Path) -> None:
    done = edge("--config", str(config_file(tmp_path, f"[mqtt]\nport = {free_port()}\n")))
    assert done.returncode == 2
    first = done.stdout.splitlines()[3]
    assert "ERROR" in first and "Traceback" not in done.stdout + done.stderr
    assert "refuses the connection" in done.stdout.replace("\n", " ")


AS_NOBODY = """
import os, sys
from pathlib import Path
from edge.doctor import report, visit
visit.visit(Path(sys.argv[1]))  # what is loaded late is loaded now: this Python may be root's own
os.setgroups([]); os.setgid(65534); os.setuid(65534)
print(report.as_json(visit.visit(Path(sys.argv[1]))))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user wants root")
def test_an_ordinary_user_is_told_what_only_root_can_see(tmp_path: Path) -> None:
    state = tmp_path / "state"
    (state / "bundles").mkdir(parents=True)
    state.chmod(0o700)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    file = config_file(tmp_path, f'[paths]\nstate = "{state}"\n')
    command = [sys.executable, "-c", AS_NOBODY, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=ROOT)
    told = json.loads(done.stdout)["findings"]
    unknown = {(f["subject"], f["code"]): f["fix"] for f in told if f["severity"] == "unknown"}
    assert {("disk", "sync_unknown"), ("update", "outcome_unseen"), ("bundle", "unseen")} <= set(unknown)
    assert all("sudo edge doctor" in fix for (subject, _), fix in unknown.items() if subject in ("update", "bundle"))
    assert not [f for f in told if f["code"] in ("check_failed", "check_timed_out")]


def test_only_some_subjects(capsys) -> None:
    cli.main(["doctor", "--json", "--only", "memory", "clock"])
    told = json.loads(capsys.readouterr().out)
    assert {finding["subject"] for finding in told["findings"]} == {"memory", "clock"}


def test_a_subject_that_does_not_exist_is_a_usage_error(capsys) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["doctor", "--only", "weather"])
    assert end.value.code == 2 and capsys.readouterr().out == ""


@pytest.mark.parametrize("text", ["[mqtt]\nprot = 1883\n", "[mqtt\n"])
def test_a_config_that_is_wrong_is_a_finding_and_the_rest_is_told(tmp_path: Path, capsys, text) -> None:
    assert cli.main(["doctor", "--json", "--config", str(config_file(tmp_path, text)), "--only", "memory"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert {(f["subject"], f["code"]) for f in told["findings"]} == {("config", "invalid"), ("memory", "available")}


def test_a_config_that_is_not_there(tmp_path: Path, capsys) -> None:
    assert cli.main(["doctor", "--config", str(tmp_path / "none.toml"), "--only", "memory"]) == 2
    assert "none.toml" in capsys.readouterr().out


def test_a_loopback_brings_its_subject(capsys) -> None:
    assert cli.main(["doctor", "--json", "--only", "memory", "--loopback", "/dev/ttyNONE9"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert ("serial", "loopback_failed") in {(f["subject"], f["code"]) for f in told["findings"]}


def test_no_secret_is_told(tmp_path: Path, capsys) -> None:
    text = f'[mqtt]\nport = {free_port()}\nusername = "line1"\npassword = "hunter2"\n' + (
        '[[camera]]\nid = "cam2"\nsource = "opencv"\naddress = "rtsp://admin:hunter2@127.0.0.1:1/live"\n'
    )
    for form in ([], ["--json"]):
        cli.main(["doctor", "--config", str(config_file(tmp_path, text)), "--only", "broker", "cameras", *form])
        said = capsys.readouterr().out
        assert "hunter2" not in said and "127.0.0.1" in said


@pytest.mark.parametrize("make", [jetson, raspberry])
def test_a_whole_visit_to_another_box(tmp_path: Path, make) -> None:
    """Every check runs on a copied tree; none fails, and none asks this machine instead."""
    box = make(tmp_path)
    box.put("/etc/edge/edge.toml", '[[camera]]\nid = "c"\nsource = "opencv"\naddress = "/dev/video0"\n')
    report = visit.visit(None, None, system=box)
    assert report.config == "/etc/edge/edge.toml" and report.machine == visit.board(box)
    assert not [f for f in report.findings if f.code == "check_failed"]
    assert {f.subject for f in report.findings} == set(subjects.CHECKS)
    assert report.exit_code == 2  # no camera, no bundle


def test_a_check_that_hangs_does_not_hang_the_visit(tmp_path: Path, monkeypatch) -> None:
    def stuck(_context):
        time.sleep(30)
        yield

    monkeypatch.setitem(subjects.CHECKS, "disk", stuck)
    report = visit.visit(None, ["disk", "memory"], system=jetson(tmp_path), limit_s=0.5)
    assert {f.code for f in report.findings} == {"check_timed_out", "available"}


def test_commands_that_hang_are_killed_with_what_they_started(tmp_path: Path) -> None:
    began = time.monotonic()
    ran = System().run(["sh", "-c", f"sleep 77.25 & echo $! > {tmp_path}/pid; wait"], 0.5)
    assert ran is not None and ran.code is None and "0.5 s" in ran.said
    assert time.monotonic() - began < 30
    child = int((tmp_path / "pid").read_text())
    until = time.monotonic() + 10
    while Path(f"/proc/{child}/stat").exists() and time.monotonic() < until:
        if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{child}").exists()


def test_what_is_not_there_is_nothing(tmp_path: Path) -> None:
    system = System(tmp_path)
    assert system.text("/none") is None and system.number("/none") is None and system.names("/none") == []
    assert system.run(["no-such-program"]) is None
    os.mkfifo(tmp_path / "pipe")
    assert system.text("/pipe") in (None, "")  # and it does not wait for a writer
    (tmp_path / "junk").write_text("12 apples")
    assert system.number("/junk") is None


def codes_of_the_source() -> list[str]:
    """`subject code` of every finding that the source makes."""
    found = {f"{subject} {code}" for subject in subjects.CHECKS for code in ("check_failed", "check_timed_out")}
    for path in sorted((ROOT / "edge/doctor").glob("*.py")):
        tree = ast.parse(path.read_text())
        heads = [
            node for node in tree.body if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "SUBJECT"
        ]
        for call in ast.walk(tree) if heads else ():
            if isinstance(call, ast.Call) and call.args:
                found |= {f"{ast.literal_eval(heads[0].value)} {code}" for code in codes_of_a_call(call)}
    return sorted(found)


def codes_of_a_call(call: ast.Call) -> set[str]:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func)
    words = [word.value if isinstance(word, ast.Constant) else None for word in call.args]
    if name == "dates_finding":
        return {f"{words[1]}_{what}" for what in ("expired", "not_yet", "expires", "dates")}
    if name == "_from_error":
        return {str(words[1])}
    return {words[0]} if name in (*MAKERS, "say", "_split") and isinstance(words[0], str) else set()


def test_codes_are_added_and_never_taken_away() -> None:
    """Fleets go by them. A new one: add it to codes.txt, in its place."""
    known = CODES.read_text().split("\n")[:-1]
    assert known == codes_of_the_source()
