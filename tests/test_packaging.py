"""What is built, installed and shipped around the code: wheel, pins, Makefile, scripts, the installer."""

from __future__ import annotations

import ast
import ensurepip
import hashlib
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
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
    "systemd/edge-import",
]


def run(
    *command: str | Path, env: dict[str, str] | None = None, cwd: Path = ROOT, limit_s: float = 110
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=limit_s,
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
    machines += [("aarch64", "3.11", "onnxruntime")]
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


@pytest.mark.parametrize(
    ("machine", "python", "runtime", "why"),
    [
        ("x86_64", "3.10", "paddlelite", "it has a wheel there"),
        ("x86_64", "3.11", "onnxruntime", "no wheel of Paddle Lite for this Python"),
        ("aarch64", "3.10", "onnxruntime", "JetPack 6"),
        ("aarch64", "3.11", "onnxruntime", "Raspberry Pi OS"),
    ],
)
def test_the_device_pins_hold_one_runtime(machine: str, python: str, runtime: str, why: str) -> None:
    target = {"platform_machine": machine, "python_version": python}
    names = {name for name, pin in pins("device").items() if pin.marker is None or pin.marker.evaluate(target)}
    assert names & {"paddlelite", "onnxruntime"} == {runtime}, why


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


# --- Makefile, scripts ---


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


# A wheelhouse as requirements/wheelhouse.sh makes it, with a program in it that is small: what the installer does with
# releases, links, units and config can be seen in seconds, without a network.
PROGRAM = """
import sys
def entry():
    words = sys.argv[1:]
    if words == ["--version"]:
        print("edge {version}")
    elif words[0] == "check-config" and "bad" in open(words[-1]).read():
        sys.exit("edge: edge.toml: bad: unknown key")
"""
EDGE = "edge_inspection"
KILLS = 60


def make_wheel(folder: Path, version: str, program: str = PROGRAM) -> None:
    files = {
        "edge/__init__.py": "",
        "edge/cli.py": program.replace("{version}", version),
        "edge/daemon.py": "",
        "edge/predictor.py": "",
        "edge/sample.toml": "# sample\n",
        f"{EDGE}-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: edge-inspection\nVersion: {version}\n",
        f"{EDGE}-{version}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{EDGE}-{version}.dist-info/entry_points.txt": "[console_scripts]\nedge = edge.cli:entry\n",
    }
    files[f"{EDGE}-{version}.dist-info/RECORD"] = "".join(f"{name},,\n" for name in files)
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / f"{EDGE}-{version}-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)


def make_wheelhouse(folder: Path, version: str, program: str = PROGRAM) -> Path:
    make_wheel(folder / "wheels", version, program)
    bundled = Path(ensurepip.__file__).parent / "_bundled"
    shutil.copy(next(bundled.glob("pip-*.whl")), folder / "wheels")
    shutil.copytree(ROOT / "systemd", folder / "systemd")
    (folder / "requirements.txt").write_text("")
    (folder / "TARGET").write_text(f"{os.uname().machine} {sys.version_info[0]}.{sys.version_info[1]}\n")
    return seal(folder)


def seal(folder: Path) -> Path:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "SHA256SUMS")
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}\n" for path in files]
    (folder / "SHA256SUMS").write_text("".join(sums))
    return folder


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wheelhouse(tmp_path_factory.mktemp("house") / "1.0", "1.0")


@pytest.fixture(scope="module")
def installed(house: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A device with release 1.0, for `device` to copy."""
    folder = tmp_path_factory.mktemp("installed")
    done = install(house, folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def device(installed: Path, tmp_path: Path) -> Path:
    """Copied: an image is made at one place and runs at another."""
    return Path(shutil.copytree(installed, tmp_path / "device", symlinks=True))


def install(wheelhouse: Path, device: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return run(wheelhouse / "systemd/install.sh", "--root", device, "--python", sys.executable, *more)


def version_of(device: Path) -> str:
    return run(device / "opt/edge/current/bin/edge", "--version").stdout.strip()


def places(device: Path) -> list[Path]:
    lines = [line.split() for line in (ROOT / "systemd/FILES").read_text().splitlines() if line[0] != "#"]
    return [device / place.lstrip("/") for _, _, place in lines]


def test_from_a_wheelhouse_without_a_network(device: Path) -> None:
    assert version_of(device) == "edge 1.0"
    assert [str(path) for path in places(device) if not path.is_file()] == []
    assert (device / "etc/edge/edge.toml").read_text() == "# sample\n"
    assert stat.S_IMODE((device / "etc/edge/edge.toml").stat().st_mode) == 0o640, "it may hold a password"
    assert os.access(device / "opt/edge/current/systemd/edge-import", os.X_OK)
    for unit in ("multi-user.target.wants/edge.service", "timers.target.wants/edge-update.timer"):
        assert os.readlink(device / "etc/systemd/system" / unit) == f"/etc/systemd/system/{Path(unit).name}"
    assert os.readlink(device / "usr/local/bin/edge") == "/opt/edge/current/bin/edge"


def test_update_and_back_and_forth(house: Path, tmp_path: Path, device: Path) -> None:
    unit = device / "etc/systemd/system/edge.service"
    second = make_wheelhouse(tmp_path / "2.0", "2.0")
    (second / "systemd/edge.service").write_text("# of release 2\n")
    (second / "systemd/only-in-2.conf").write_text("")
    with (second / "systemd/FILES").open("a") as files:
        files.write("only-in-2.conf 0644 /etc/only-in-2.conf\n")
    assert install(seal(second), device).returncode == 0
    assert version_of(device) == "edge 2.0" and unit.read_text() == "# of release 2\n"
    assert (device / "etc/only-in-2.conf").exists()
    assert install(house, device, "--dry-run").returncode == 0 and version_of(device) == "edge 2.0"

    back = run(second / "systemd/install.sh", "--root", device, "--previous")
    assert back.returncode == 0, back.stderr
    assert version_of(device) == "edge 1.0"
    assert unit.read_text() == (ROOT / "systemd/edge.service").read_text(), "the units go back, too"
    assert not (device / "etc/only-in-2.conf").exists()
    assert run(second / "systemd/install.sh", "--root", device, "--previous").returncode == 0
    assert version_of(device) == "edge 2.0"

    shutil.copytree(device / "opt/edge/current/", device / "opt/edge/releases/0.9-before", symlinks=True)
    assert install(second, device).returncode == 0
    kept = sorted(path.name.split("-")[0] for path in (device / "opt/edge/releases").iterdir())
    assert kept == ["1.0", "2.0"], "this one and the one before"


def test_installing_again_changes_nothing(house: Path, device: Path) -> None:
    config = device / "etc/edge/edge.toml"
    config.write_text("# ours\n")
    wants = device / "etc/systemd/system/timers.target.wants/edge-update.timer"
    wants.unlink()  # as `systemctl disable` does
    release = (device / "opt/edge/current").resolve()
    made = (release / ".complete").stat().st_mtime_ns
    assert install(house, device).returncode == 0
    assert (device / "opt/edge/current").resolve() == release
    assert (release / ".complete").stat().st_mtime_ns == made, "it was there already"
    assert config.read_text() == "# ours\n" and not wants.exists()
    assert not (device / "opt/edge/previous").exists()


def test_an_installation_that_was_cut_short_is_made_anew(house: Path, device: Path) -> None:
    """As if the power had gone: the folder is there, its mark is not."""
    release = (device / "opt/edge/current").resolve()
    (release / ".complete").unlink()
    (release / "bin/edge").write_text("")
    (device / "opt/edge/current").unlink()
    done = install(house, device)
    assert done.returncode == 0, done.stderr
    assert (release / ".complete").exists() and version_of(device) == "edge 1.0"


def test_a_release_that_does_not_run_here_is_not_switched_to(tmp_path: Path, device: Path) -> None:
    new = make_wheelhouse(tmp_path / "new", "2.0", "def entry(): raise SystemExit('no such library')")
    done = install(new, device)
    assert done.returncode == 1 and "cannot run" in done.stderr, done.stderr
    assert version_of(device) == "edge 1.0"


def test_a_config_that_the_release_refuses_keeps_the_old_one(house: Path, device: Path) -> None:
    (device / "etc/edge/edge.toml").write_text("bad = 1\n")
    before = (device / "etc/systemd/system/edge.service").stat().st_mtime_ns
    done = install(house, device)
    assert done.returncode == 1 and "refuses the config" in done.stderr and "bad: unknown key" in done.stderr
    assert (device / "etc/systemd/system/edge.service").stat().st_mtime_ns == before, "nothing was switched"


def test_a_wheelhouse_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    bare, house = tmp_path / "bare", make_wheelhouse(tmp_path / "one", "1.0")
    bare.mkdir()
    wheel = next((house / "wheels").glob(f"{EDGE}-*"))
    whole = wheel.read_bytes()
    wheel.write_bytes(whole[:-1])
    done = install(house, bare)
    assert done.returncode == 1 and "is damaged: copy it again" in done.stderr
    wheel.write_bytes(whole)
    (house / "TARGET").write_text("riscv64 3.10\n")
    done = install(seal(house), bare)
    assert done.returncode == 1 and "is for riscv64, this machine is" in done.stderr
    (house / "TARGET").write_text(f"{os.uname().machine} 3.9\n")
    done = install(seal(house), bare)
    assert done.returncode == 1 and "is not a Python 3.9" in done.stderr
    assert [path for path in bare.rglob("*") if not path.is_dir()] == [], "nothing was begun"
    done = run(house / "systemd/install.sh", "--root", bare, "--previous")
    assert done.returncode == 1 and "there is no release before this one" in done.stderr


def test_wheels_of_the_site_go_into_each_release(house: Path, tmp_path: Path, device: Path) -> None:
    """As Paddle Lite built on the board does."""
    own = device / "etc/edge/wheels"
    own.mkdir()
    make_wheel(own, "9.0", PROGRAM.replace("{version}", "of the site"))
    done = install(house, device)
    assert done.returncode == 0 and f"adding {EDGE}-9.0" in done.stdout, done.stderr
    assert version_of(device) == "edge of the site"


def test_uninstall_keeps_what_is_not_the_programs(house: Path, device: Path) -> None:
    state = device / "var/lib/edge/outbox.db"
    state.parent.mkdir(parents=True)
    state.write_text("")
    script = house / "systemd/install.sh"
    assert run(script, "--root", device, "--uninstall").returncode == 0
    left = [str(path.relative_to(device)) for path in device.rglob("*") if not path.is_dir()]
    assert sorted(left) == ["etc/edge/edge.toml", "var/lib/edge/outbox.db"]
    assert run(script, "--root", device, "--uninstall").returncode == 0, "again"
    assert run(script, "--root", device, "--uninstall", "--purge").returncode == 0
    assert not (device / "etc/edge").exists() and not state.parent.exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "name the folder that is to be made"),
        (["{tmp}/out", "--arch", "armv7l"], "--arch armv7l is not aarch64 or x86_64"),
        (["{tmp}/out", "--python", "3.9"], "--python 3.9 is not 3.10, 3.11 or 3.12"),
        (["{tmp}/out", "--add", "/nonexistent.whl"], "--add /nonexistent.whl is not a file"),
        (["{tmp}"], "is there already"),
    ],
)
def test_a_wheelhouse_is_not_made_from_wrong_arguments(arguments: list[str], expected: str, tmp_path: Path) -> None:
    done = run(ROOT / "requirements/wheelhouse.sh", *(word.format(tmp=tmp_path) for word in arguments))
    assert done.returncode == 1 and expected in done.stderr
    assert list(tmp_path.iterdir()) == []


def kill_update(second: Path, device: Path, after_s: float) -> bool:
    """Begins the update and kills it with all its children; True when it had ended before."""
    command = [str(second / "systemd/install.sh"), "--root", str(device), "--python", sys.executable]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(after_s)
    ended = process.poll() is not None
    if not ended:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)
    return ended


@pytest.mark.slow
def test_an_update_that_is_killed_leaves_a_release_that_runs(house: Path, tmp_path: Path, device: Path) -> None:
    second = make_wheelhouse(tmp_path / "2.0", "2.0")
    for path in (second / "systemd").glob("*.service"):
        path.write_text(path.read_text() + "# of release 2\n")
    seal(second)
    (tmp_path / "trial").mkdir()
    began = time.monotonic()
    assert install(second, tmp_path / "trial").returncode == 0
    whole = time.monotonic() - began
    seen = set()
    for n in range(KILLS):
        copy = Path(shutil.copytree(device, tmp_path / f"device{n}", symlinks=True))
        ended = kill_update(second, copy, whole * n / KILLS)
        version = version_of(copy)
        seen.add(version)
        assert version in ("edge 1.0", "edge 2.0"), f"killed after {n}/{KILLS} of {whole:.1f} s"
        for path in places(copy):
            assert path.is_file() and path.stat().st_size > 0, f"{path} after {n}/{KILLS}"
        if n % 10 == 0 or ended:
            assert install(second, copy).returncode == 0 and version_of(copy) == "edge 2.0", "run again, it is whole"
        shutil.rmtree(copy)
    print(f"{KILLS} kills over {whole:.1f} s, found: {sorted(seen)}")
    assert "edge 1.0" in seen


@pytest.mark.slow
def test_install_from_the_checkout(tmp_path: Path) -> None:
    device = tmp_path
    assert run(INSTALL, "--root", device, limit_s=900).returncode == 0
    config = device / "etc/edge/edge.toml"
    done = run(device / "opt/edge/current/bin/edge", "check-config", "--config", config, cwd=device)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "python"), [("aarch64", "3.10"), ("aarch64", "3.11"), ("x86_64", "3.10")])
def test_a_wheelhouse_has_a_wheel_of_every_pin(arch: str, python: str, tmp_path: Path) -> None:
    out, device = tmp_path / "out", tmp_path / "device"
    device.mkdir()
    done = run(ROOT / "requirements/wheelhouse.sh", out, "--arch", arch, "--python", python, limit_s=900)
    assert done.returncode == 0, done.stderr
    names = {path.name.split("-")[0].lower().replace("_", "-") for path in (out / "wheels").iterdir()}
    target = {"platform_machine": arch, "python_version": python}
    wanted = {name for name, pin in pins("device").items() if pin.marker is None or pin.marker.evaluate(target)}
    assert names == wanted | {"pip", "setuptools", "edge-inspection"}
    if arch == os.uname().machine and python == f"{sys.version_info[0]}.{sys.version_info[1]}":
        command: list[str | Path] = ["unshare", "--net", out / "systemd/install.sh", "--root", device]
        done = run(*command, "--python", sys.executable, limit_s=900)
        assert done.returncode == 0, done.stderr


def test_every_package_of_the_device_has_an_init() -> None:
    folders = {path.parent for path in (ROOT / "edge").rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_the_version_is_stated_once() -> None:
    tree = ast.parse((ROOT / "setup.py").read_text())
    literals = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    assert not [text for text in literals if re.fullmatch(r"\d+\.\d+\.\d+", text)]
