"""May the service do what it has to, and nobody else read what is secret."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge.config import Config, OpenCvCamera, PipeCamera
from edge.doctor.context import SERVICE_USER, UNIT, Context
from edge.doctor.finding import Finding, Reporter
from edge.doctor.system import System

SUBJECT: Final = "permissions"
UNIT_FOLDERS: Final = (
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
)
CREDENTIALS: Final = "/run/credentials/"

_note = Reporter(SUBJECT)


@dataclass(frozen=True)
class User:
    """Who the daemon runs as. `groups`: its own, and those that the unit adds."""

    name: str
    uid: int
    groups: frozenset[int]
    group_names: frozenset[str]

    def may(self, found: os.stat_result, mode: int) -> bool:
        """Whether mode bits (4 read, 2 write, 1 enter) are his by owner, group or others."""
        if self.uid == 0:
            return True
        shift = 6 if found.st_uid == self.uid else 3 if found.st_gid in self.groups else 0
        return (stat.S_IMODE(found.st_mode) >> shift) & mode == mode


def check(context: Context) -> Iterator[Finding]:
    """State folder, devices' groups, credentials, secrets in the config."""
    system = context.system
    user = service_user(system)
    if user is None:
        yield _note.info(
            "no_service_user",
            f"there is no user {SERVICE_USER}: the service is not installed; judged for whoever runs this",
            "`sudo systemd/install.sh` installs it",
        )
        user = current_user(system)
    yield from _state(context, user)
    if context.config is not None:
        yield from _groups(system, context.config, user)
        yield from _credentials(system, context.config, user)
        yield from _secrets(context, context.config)
        yield from _config_file(context, user)


# --- who ---


def service_user(system: System) -> User | None:
    """The user of the unit, from /etc/passwd and /etc/group of the box."""
    found = re.search(rf"^{SERVICE_USER}:[^:]*:(\d+):(\d+):", system.text("/etc/passwd") or "", re.MULTILINE)
    if not found:
        return None
    groups = {int(found[2])} | {gid for _, gid, members in _group_lines(system) if SERVICE_USER in members}
    extra = set(unit_words(system, "SupplementaryGroups"))
    groups |= {gid for name, gid, _ in _group_lines(system) if name in extra}
    return User(SERVICE_USER, int(found[1]), frozenset(groups), _names_of(system, groups))


def current_user(system: System) -> User:
    """Whoever runs this."""
    groups = system.groups()
    return User("this user", system.user(), frozenset(groups), _names_of(system, groups))


def _names_of(system: System, groups: set[int]) -> frozenset[str]:
    return frozenset(name for name, gid, _ in _group_lines(system) if gid in groups)


def _group_lines(system: System) -> list[tuple[str, int, list[str]]]:
    rows = [line.split(":") for line in (system.text("/etc/group") or "").splitlines()]
    return [(row[0], int(row[2]), row[3].split(",")) for row in rows if len(row) >= 4 and row[2].isdecimal()]


def unit_words(system: System, key: str) -> list[str]:
    """The words of a key of the unit and of its drop-ins."""
    texts = [
        system.text(path) or ""
        for folder in UNIT_FOLDERS
        for path in (f"{folder}/{UNIT}", *system.glob(f"{folder}/{UNIT}.d/*.conf"))
    ]
    return [
        word for text in texts for line in re.findall(rf"^{key}=(.*)$", text, re.MULTILINE) for word in line.split()
    ]


# --- what ---


def _state(context: Context, user: User) -> Iterator[Finding]:
    system, state = context.system, context.state
    found = system.stat(state)
    if found is None:
        if system.exists(state.parent) and not system.may(state.parent, os.X_OK):
            yield _note.unknown(
                "state_unknown", f"the state folder {state} may not be looked into", "run `sudo edge doctor`"
            )
            return
        say = _note.error if context.config is not None else _note.info
        yield say(
            "no_state",
            f"there is no state folder {state}",
            f"`sudo install -d -o {SERVICE_USER} -g {SERVICE_USER} -m 750 {state}`; the unit makes /var/lib/edge",
        )
        return
    if not user.may(found, 7):
        yield _note.error(
            "state_not_writable",
            f"{user.name} may not write to the state folder {state} (owner {found.st_uid}, mode {_mode(found)})",
            f"`sudo chown -R {SERVICE_USER}:{SERVICE_USER} {state} && sudo chmod 750 {state}`",
        )
        return
    yield from _foreign(system, state, user)


def _foreign(system: System, state: Path, user: User) -> Iterator[Finding]:
    """Files that a run as root has left there: the daemon cannot change them."""
    foreign = []
    for name in system.names(state):
        found = system.stat(state / name)
        if found is not None and not user.may(found, 6 | (1 if stat.S_ISDIR(found.st_mode) else 0)):
            foreign.append(name)
    if foreign:
        yield _note.error(
            "foreign_files",
            f"in {state} {user.name} may not write to {', '.join(foreign[:8])}: something ran there as another user",
            f"`sudo chown -R {SERVICE_USER}:{SERVICE_USER} {state}`",
            files=foreign,
        )
    else:
        yield _note.ok("state", f"{user.name} may write to {state}")


def group_of(system: System, device: str, usual: str) -> str:
    """The group that may open a device; the usual one where that cannot be told."""
    found = system.stat(device)
    names = [name for name, gid, _ in _group_lines(system) if found is not None and gid == found.st_gid]
    return names[0] if names and found is not None and found.st_gid != 0 else usual


def _groups(system: System, config: Config, user: User) -> Iterator[Finding]:
    """Devices that are there by their own rights, others by the group that usually may open them."""
    absent: dict[str, list[str]] = {}
    devices = devices_of(config)
    for device, usual in devices.items():
        found = system.stat(device)
        group = group_of(system, device, usual)
        may = user.may(found, 6) if found is not None else group in user.group_names or user.uid == 0
        if not may:
            absent.setdefault(group, []).append(device)
    for group, closed in absent.items():
        name = user.name if user.name == SERVICE_USER else "$USER"
        yield _note.error(
            "not_in_group",
            f"{user.name} is not in the group {group}, which may open {', '.join(closed)}",
            f"`sudo usermod -aG {group} {name}`, then `sudo systemctl restart edge`",
            group=group,
        )
    if devices and not absent:
        yield _note.ok("groups", f"{user.name} may open its cameras and ports")


def devices_of(config: Config) -> dict[str, str]:
    """Devices that the config names, with the group that usually may open them."""
    cameras = [camera.address for camera in config.camera if isinstance(camera, OpenCvCamera)]
    pipes = [word for camera in config.camera if isinstance(camera, PipeCamera) for word in camera.command]
    named = [*cameras, *(path for word in pipes for path in re.findall(r"/dev/(?:v4l/|video)[^\s,!\"']*", word))]
    ports = [config.plc.port] if config.plc is not None else []
    ports += [output.port for output in config.output if output.port is not None]
    return {device: "video" for device in named if device.startswith("/dev/")} | {port: "dialout" for port in ports}


def _credentials(system: System, config: Config, user: User) -> Iterator[Finding]:
    files = {
        "mqtt.password_file": config.mqtt.password_file,
        "mqtt.ca_file": config.mqtt.ca_file,
        "mqtt.cert_file": config.mqtt.cert_file,
        "mqtt.key_file": config.mqtt.key_file,
        "update.ca_file": config.update.ca_file,
    }
    for key, file in files.items():
        if file is not None:
            yield credential_finding(system, user, key, file)


def credential_finding(system: System, user: User, key: str, file: str) -> Finding:
    """Whether one file is there, readable by the service, and a secret one by nobody else."""
    found = system.stat(file)
    if found is None:
        if file.startswith(CREDENTIALS):
            return _note.unknown(
                "credential_unseen",
                f"{key} {file} is there only while the service runs, and only for it",
                f"`systemctl cat {UNIT} | grep LoadCredential` shows what it is made of",
                key=key,
            )
        return _note.error(
            "credential_missing",
            f"{key} {file} is not there, or lies in a folder that may not be entered",
            "copy it there, or correct the config; `sudo edge doctor` sees more",
            key=key,
        )
    if not file.startswith(CREDENTIALS) and not user.may(found, 4):
        return _note.error(
            "credential_unreadable",
            f"{user.name} may not read {key} {file}",
            f"`sudo chown root:{SERVICE_USER} {file} && sudo chmod 640 {file}`",
            key=key,
        )
    if key in ("mqtt.password_file", "mqtt.key_file") and found.st_mode & stat.S_IROTH:
        return _note.warning(
            "credential_open",
            f"everybody on this box may read {key} {file}",
            f"`sudo chown root:{SERVICE_USER} {file} && sudo chmod 640 {file}`",
            key=key,
        )
    return _note.ok("credential", f"{key} can be read", key=key)


def _secrets(context: Context, config: Config) -> Iterator[Finding]:
    """A password in the config, for everybody to read."""
    path = context.config_path
    found = context.system.stat(path) if path is not None else None
    if found is None:
        return
    urls = [
        camera.id
        for camera in config.camera
        if isinstance(camera, OpenCvCamera) and re.search(r"://[^/@]*:[^/@]*@", camera.address)
    ]
    what = [*(["mqtt.password"] if config.mqtt.password else []), *(f"the address of {name}" for name in urls)]
    if what and found.st_mode & stat.S_IROTH:
        yield _note.warning(
            "config_open",
            f"{path} holds a password ({', '.join(what)}), and everybody on this box may read it (mode {_mode(found)})",
            f"`sudo chown root:{SERVICE_USER} {path} && sudo chmod 640 {path}`, or put it into mqtt.password_file",
            mode=_mode(found),
        )


def _config_file(context: Context, user: User) -> Iterator[Finding]:
    """The service has to read it, too."""
    path = context.config_path
    found = context.system.stat(path) if path is not None else None
    if found is not None and not user.may(found, 4):
        yield _note.error(
            "config_closed",
            f"{user.name} may not read {path} (mode {_mode(found)}): the service cannot start",
            f"`sudo chown root:{SERVICE_USER} {path} && sudo chmod 640 {path}`",
        )


def _mode(found: os.stat_result) -> str:
    return f"{stat.S_IMODE(found.st_mode):03o}"
