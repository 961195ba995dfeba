"""What is built, installed and shipped around the code: wheel, pins, Makefile, scripts, the systemd unit."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
FIND_PYTHON = ROOT / "requirements/find-python.sh"
SCRIPTS = [
    ".ci/run",
    *(f"requirements/{name}.sh" for name in ("find-python", "install", "lock", "wheelhouse")),
    "systemd/install.sh",
]


def run(*command: str | Path, env: dict[str, str] | None = None, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


# --- the wheel ---


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("edge", "tools", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet"]
    done = run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_the_wheel_holds_the_device_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"edge"}
    on_disk = {str(path.relative_to(ROOT)) for path in (ROOT / "edge").rglob("*.py")}
    assert on_disk <= set(wheel.namelist()), "every module, so every folder of them has an __init__.py"
    assert {"edge/sample.toml", "edge/py.typed"} <= set(wheel.namelist())


def test_the_wheel_installs_the_command_and_asks_for_the_runtime_of_the_machine(wheel: zipfile.ZipFile) -> None:
    info = next(name for name in wheel.namelist() if name.endswith("/METADATA")).rpartition("/")[0]
    assert "edge = edge.cli:entry" in wheel.read(f"{info}/entry_points.txt").decode()
    meta = message_from_string(wheel.read(f"{info}/METADATA").decode())
    assert (meta["Requires-Python"], meta["License"] or meta["License-Expression"]) == (">=3.10,<3.13", "Apache-2.0")
    wanted = [Requirement(text) for text in meta.get_all("Requires-Dist", [])]
    machines = [("x86_64", "3.10", "paddlelite"), ("aarch64", "3.10", "onnxruntime"), ("x86_64", "3.12", "onnxruntime")]
    for machine, python, runtime in machines:
        environment = {"platform_machine": machine, "python_version": python, "platform_system": "Linux", "extra": ""}
        names = {r.name for r in wanted if r.marker is None or r.marker.evaluate(environment)}
        assert names & {"paddlelite", "onnxruntime"} == {runtime}, f"{machine} with Python {python}"
        assert not names & {"paddlepaddle", "paddleslim", "opencv-python"}, "the device has no training framework"


# --- the pins ---


def pins(name: str) -> dict[str, Requirement]:
    """Requirements of a lock file and of those that it includes, by normal name."""
    found: dict[str, Requirement] = {}
    for line in (ROOT / f"requirements/{name}.txt").read_text().splitlines():
        line = line.partition("#")[0].strip()
        if line.startswith("-r "):
            found |= pins(line[3:].removesuffix(".txt"))
        elif line:
            requirement = Requirement(line)
            found[requirement.name.lower().replace("_", "-")] = requirement
    return found


@pytest.mark.parametrize("name", ["build", "device", "demo", "dev"])
def test_every_requirement_is_pinned(name: str) -> None:
    for requirement in pins(name).values():
        assert re.fullmatch(r"==[0-9][^,*]*", str(requirement.specifier)), f"{name}.txt: {requirement}"


@pytest.mark.parametrize(("lock", "extras"), [("device", ()), ("demo", ("demo", "view")), ("dev", ("tools", "test"))])
def test_the_pins_satisfy_what_setup_asks_for(lock: str, extras: tuple[str, ...], wheel: zipfile.ZipFile) -> None:
    info = next(name for name in wheel.namelist() if name.endswith("/METADATA"))
    meta = message_from_string(wheel.read(info).decode())
    have = pins(lock) | pins("build")
    environment = {"platform_machine": "x86_64", "python_version": "3.10", "platform_system": "Linux"}
    for text in meta.get_all("Requires-Dist", []):
        wanted = Requirement(text)
        if wanted.marker is None or any(wanted.marker.evaluate(environment | {"extra": e}) for e in ("", *extras)):
            name = wanted.name.lower().replace("_", "-")
            assert name in have, f"{lock}.txt lacks {wanted}: run `make lock`"
            version = str(have[name].specifier).removeprefix("==")
            assert wanted.specifier.contains(version, prereleases=True), f"{lock}.txt: {have[name]}, wanted {wanted}"


def test_opencv_is_there_once() -> None:
    assert [name for name in pins("dev") if name.startswith("opencv")] == ["opencv-python-headless"]


def test_no_shipped_file_names_a_package_registry() -> None:
    hosts = re.compile("|".join(["py" + "pi", "index-" + "url", "pythonhosted"]), re.IGNORECASE)
    paths = [ROOT / name for name in ("Makefile", "setup.py", "pyproject.toml", *SCRIPTS)]
    paths += (ROOT / "requirements").iterdir()
    assert [str(path) for path in paths if hosts.search(path.read_text())] == []


# --- finding a Python 3.10 ---

REAL = f"{sys.version_info.major}.{sys.version_info.minor}" == "3.10"
ENOUGH_PATH = "/usr/bin:/bin"


def fake(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def find(tmp_path: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs the finder with the commands in tmp_path/bin before those of a bare system without any Python."""
    bare = tmp_path / "bare"
    bare.mkdir(exist_ok=True)
    for name in ("sh", "sed", "cat", "echo", "env"):
        if not (bare / name).exists():
            (bare / name).symlink_to(str(shutil.which(name, path=ENOUGH_PATH)))
    return run(FIND_PYTHON, env={"PATH": f"{tmp_path / 'bin'}:{bare}", "HOME": str(tmp_path), **env})


@pytest.mark.skipif(not REAL, reason="needs the Python 3.10 that the project is for")
@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("bin/python3.10", "by its name on PATH"),
        ("bin/python3", "by another name on PATH"),
        (".pyenv/versions/3.10.13/bin/python3.10", "under pyenv, which need not be on PATH"),
    ],
)
def test_a_python_is_found(place: str, why: str, tmp_path: Path) -> None:
    fake(tmp_path / place, f'exec {sys._base_executable} "$@"')  # type: ignore[attr-defined]
    done = find(tmp_path)
    assert done.returncode == 0, f"{why}: {done.stderr}"
    assert run(done.stdout.strip(), "--version").stdout.startswith("Python 3.10"), why


@pytest.mark.skipif(not REAL, reason="needs the Python 3.10 that the project is for")
def test_a_python_is_found_through_uv_and_past_a_shim_that_fails(tmp_path: Path) -> None:
    fake(tmp_path / "bin/python3.10", "echo 'pyenv: python3.10: command not found' >&2; exit 127")
    fake(tmp_path / "bin/python3", "exit 1")
    real = sys._base_executable  # type: ignore[attr-defined]
    fake(tmp_path / "bin/uv", f'[ "$1 $2 $3" = "python find 3.10" ] && echo {real}')
    assert find(tmp_path).stdout.strip() == real


def test_without_a_python_one_sentence_says_how_to_get_one(tmp_path: Path) -> None:
    fake(tmp_path / "bin/python3.10", "exit 127")
    fake(tmp_path / "bin/python3", "echo 3.11 /usr/bin/python3")
    done = find(tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in ("Python 3.10", "apt install", "pyenv install 3.10", "uv"))


def test_a_python_without_venv_says_what_is_missing(tmp_path: Path) -> None:
    python = tmp_path / "bin/python3.10"
    fake(python, f'case "$2" in *version*) echo 3.10 {python};; *) exit 1;; esac')
    done = find(tmp_path)
    assert done.returncode == 1
    assert str(python) in done.stderr and "python3.10-venv" in done.stderr


def test_a_python_that_was_asked_for_is_taken_or_refused(tmp_path: Path) -> None:
    done = find(tmp_path, PYTHON="python9")
    assert done.returncode == 1
    assert "PYTHON=python9 is not a Python 3.10" in done.stderr


# --- Makefile, scripts, unit ---


def test_make_says_what_it_can_do() -> None:
    done = run("make")
    assert done.returncode == 0
    for target in ("run", "test", "bench", "soak", "clean"):
        assert f"make {target} " in done.stdout
        assert run("make", "-n", target).returncode == 0, target


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_can_be_run_and_are_clean(script: str) -> None:
    path = ROOT / script
    assert os.access(path, os.X_OK), f"{script} is not executable"
    if shutil.which("shellcheck"):
        assert run("shellcheck", path).stdout == ""


def test_the_unit_is_valid(tmp_path: Path) -> None:
    unit = tmp_path / "edge.service"
    text = (ROOT / "systemd/edge.service").read_text()
    unit.write_text(text.replace("/opt/edge/current/bin/edge", "/bin/true"))  # it wants a program that exists
    for line in ("Type=notify", "WatchdogSec=30", "Restart=on-failure", "StateDirectory=edge", "NoNewPrivileges=yes"):
        assert f"\n{line}\n" in text
    assert not re.search(r"^(MemoryDenyWriteExecute|ProcSubset)=", text, re.MULTILINE), "Paddle Lite would fail"
    if shutil.which("systemd-analyze"):
        done = run("systemd-analyze", "verify", "--man=no", unit)
        assert (done.returncode, done.stderr) == (0, "")


INSTALL = ROOT / "systemd/install.sh"


@pytest.mark.parametrize(
    ("arguments", "expected", "why"),
    [
        (["--root"], "--root wants a value", "nothing behind it"),
        (["--root", ""], "--root wants a value", "an unset variable must not mean the real machine"),
        (["--root", "/"], "--root / is the machine itself", "nor may this"),
        (["--root", "/nonexistent"], "--root /nonexistent is not a folder", "a slip of the keyboard"),
        (["--wheels", "/nonexistent"], "--wheels /nonexistent is not a folder", "likewise"),
        (["--purge"], "--purge goes with --uninstall", "it would do nothing"),
        (["--rot", "x"], "unknown argument --rot", "an unknown option"),
    ],
)
def test_the_installer_refuses_wrong_arguments(arguments: list[str], expected: str, why: str) -> None:
    done = run(INSTALL, "--dry-run", *arguments)
    assert done.returncode == 1 and expected in done.stderr, why
    assert done.stdout == "", "nothing was begun"


def test_the_installer_changes_nothing_in_a_dry_run(tmp_path: Path) -> None:
    done = run(INSTALL, "--dry-run", "--root", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "would run:" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_install_update_and_uninstall(tmp_path: Path) -> None:
    done = run(INSTALL, "--root", tmp_path)
    assert done.returncode == 0, done.stderr
    config = tmp_path / "etc/edge/edge.toml"
    command = tmp_path / "opt/edge/current/bin/edge"
    assert run(command, "check-config", "--config", config, cwd=tmp_path).returncode == 0
    assert (tmp_path / "etc/systemd/system/edge.service").is_file()
    release = (tmp_path / "opt/edge/current").resolve()

    config.write_text(config.read_text() + "# ours\n")
    (release / ".complete").unlink()  # as if the power had gone while it was installed
    assert run(INSTALL, "--root", tmp_path).returncode == 0
    assert (release / ".complete").exists()
    assert config.read_text().endswith("# ours\n"), "an update leaves the config alone"

    assert run(INSTALL, "--root", tmp_path, "--uninstall").returncode == 0
    assert not (tmp_path / "opt/edge").exists() and config.exists()
    assert run(INSTALL, "--root", tmp_path, "--uninstall", "--purge").returncode == 0
    assert not config.exists()


def test_every_package_of_the_device_has_an_init() -> None:
    folders = {path.parent for path in (ROOT / "edge").rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_the_version_is_stated_once() -> None:
    tree = ast.parse((ROOT / "setup.py").read_text())
    literals = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    assert not [text for text in literals if re.fullmatch(r"\d+\.\d+\.\d+", text)]
