"""A device without Paddle Lite: the daemon runs the bundle's ONNX model and says so."""

from __future__ import annotations

import re
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.brokers import Broker, needs_mosquitto, wait_until
from tests.flow.rig import Client, Daemon

LINE = '[[camera]]\nid = "cam1"\nsource = "simulated"\nfps = 10.0\nboards = 3\nfault_rate = 0.0\n'


@pytest.fixture
def bare_python(tmp_path: Path) -> Path:
    """A virtual environment with all packages of this one but Paddle Lite; its files are links."""
    home = tmp_path / "bare"
    site = home / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    site.mkdir(parents=True)
    for package in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not package.name.startswith("paddlelite"):
            (site / package.name).symlink_to(package)
    (home / "bin").mkdir()
    python = home / "bin" / "python"
    python.symlink_to(Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}")
    (home / "pyvenv.cfg").write_text(f"home = {Path(sys.base_prefix) / 'bin'}\ninclude-system-site-packages = false\n")
    return python


def run_to_the_end(daemon: Daemon) -> int:
    """Exit code of a daemon whose only camera ends after three boards."""
    try:
        return daemon.start().wait(90)
    finally:
        daemon.end()


@pytest.fixture
def without_paddle_lite(bare_python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(bare_python))  # what the rig starts the daemon with


RUNTIME = re.compile(r"onnxruntime \S+ fp32 any on CPUExecutionProvider")


@pytest.mark.usefixtures("without_paddle_lite")
def test_a_device_without_paddle_lite_serves_the_onnx(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, 9, LINE)
    assert run_to_the_end(daemon) == 0
    assert re.search(rf"serving pcb \d+ on {RUNTIME.pattern}", daemon.log())
    verdicts = [row["verdict"] for row in daemon.outbox_rows() if row["schema"] == "edge.result.v1"]
    assert len(verdicts) == 3 and set(verdicts) <= {"OK", "NG", "REVIEW"}


@needs_mosquitto
@pytest.mark.usefixtures("without_paddle_lite")
def test_info_says_so(tmp_path: Path) -> None:
    with Broker(tmp_path / "broker") as broker:
        client = Client(broker.port)
        assert run_to_the_end(Daemon(tmp_path, broker.port, LINE)) == 0
        wait_until(lambda: client.json("/info"), 10, "info")
        info = client.json("/info")[0]
        client.close()
    assert RUNTIME.fullmatch(info["runtime"])


def test_a_provider_that_the_device_lacks_is_one_clear_error(tmp_path: Path) -> None:
    more = '[runtime]\nprefer = "onnxruntime"\nproviders = ["CUDAExecutionProvider", "CPUExecutionProvider"]'
    daemon = Daemon(tmp_path, 9, LINE, more=more)
    assert run_to_the_end(daemon) == 2
    assert "names CUDAExecutionProvider, which this build of ONNX Runtime lacks: it has" in daemon.log()
    assert "Traceback" not in daemon.log()
