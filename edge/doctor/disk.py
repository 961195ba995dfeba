"""Space, wear and speed of the disks that the daemon writes to."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from edge.config import Config
from edge.doctor.context import Context
from edge.doctor.finding import Finding, Reporter
from edge.doctor.mounts import Mount, disk_of, mount_of, partition_of
from edge.doctor.system import System

SUBJECT: Final = "disk"
MB: Final = 1_000_000
FULL_SHARE, FULL_MB = 0.01, 100  # less is free: messages and verdicts cannot be stored any more
SCARCE_SHARE, SCARCE_MB = 0.05, 500  # less is free: it will be soon
SLOW_MS, TOO_SLOW_MS = 30.0, 200.0  # of one fsync in the middle: each part costs one or two
LOOK_S: Final = 3.0  # for what is large
FSYNCS: Final = 20
VOLATILE: Final = ("tmpfs", "ramfs", "overlay", "aufs", "squashfs")
FREE_FIX: Final = (
    "see what is large with `sudo du -xh --max-depth=2 {point} | sort -h | tail -20`; "
    "old logs go with `sudo journalctl --vacuum-size=200M`, evidence is limited by evidence.quota_mb"
)

_note = Reporter(SUBJECT)


def check(context: Context) -> Iterator[Finding]:
    """Of the state folder's file system and of the root's."""
    system = context.system
    state = _nearest(system, context.state)
    places = {"the state folder's disk": state, "the root disk": "/"}
    seen: set[str] = set()
    for what, path in places.items():
        mount = mount_of(system, path)
        key = mount.point if mount else path
        if key in seen:
            continue
        seen.add(key)
        yield from _space(system, what, path, mount)
        yield from _inodes(system, what, path)
        if mount is not None:
            yield from _mount(system, what, mount, is_state=path == state)
    yield from _promised(context, state)
    yield from _syncs(context)
    yield from _wear(system, [mount_of(system, path) for path in places.values()])


def _nearest(system: System, path: Path) -> str:
    """The path, or the folder above it that exists."""
    return str(next((p for p in (path, *path.parents) if system.exists(p)), Path("/")))


def _space(system: System, what: str, path: str, mount: Mount | None) -> Iterator[Finding]:
    usage = system.usage(path)
    if usage is None or usage.total_bytes == 0:
        yield _note.unknown("space_unknown", f"how full {what} ({path}) is cannot be asked", f"try `df -h {path}`")
        return
    point = mount.point if mount else path
    found = space_finding(what, point, usage.total_bytes, usage.free_bytes)
    if found.severity != "ok" and path != "/":
        found = _with_largest(found, system.path(path))
    yield found


def space_finding(what: str, point: str, total_bytes: int, free_bytes: int) -> Finding:
    """How full a file system is."""
    text = f"{what} ({point}) has {_size(free_bytes)} of {_size(total_bytes)} free"
    told = {"point": point, "free_bytes": free_bytes, "total_bytes": total_bytes}
    # Of a small disk the share counts, of a large one the megabytes.
    if free_bytes < min(FULL_SHARE * total_bytes, FULL_MB * MB):
        return _note.error(
            "full", f"{text}: verdicts and messages can no longer be stored", FREE_FIX.format(point=point), **told
        )
    if free_bytes < min(SCARCE_SHARE * total_bytes, SCARCE_MB * MB):
        return _note.warning("nearly_full", text, FREE_FIX.format(point=point), **told)
    return _note.ok("space", text, **told)


def _with_largest(found: Finding, folder: Path) -> Finding:
    """What is worth looking at first in the state folder."""
    sizes = sorted(sizes_below(folder, LOOK_S).items(), key=lambda item: -item[1])[:3]
    if not sizes:
        return found
    text = f"{found.text}; largest there: {', '.join(f'{name} {_size(size)}' for name, size in sizes)}"
    return msgspec.structs.replace(found, text=text, data={**found.data, "largest_bytes": dict(sizes)})


def sizes_below(folder: Path, limit_s: float) -> dict[str, int]:
    """Bytes of each entry of a folder with all below it, as far as that was counted within the time."""
    until, sizes = time.monotonic() + limit_s, {}
    for name in sorted(os.listdir(folder)) if os.access(folder, os.R_OK | os.X_OK) else []:
        sizes[name] = _bytes_of(folder / name, until)
    return sizes


def _bytes_of(path: Path, until: float) -> int:
    total = path.lstat().st_blocks * 512 if os.path.lexists(path) else 0
    for place, _, names in os.walk(path) if not path.is_symlink() else ():
        for name in names:
            with contextlib.suppress(OSError):  # gone meanwhile
                total += os.lstat(os.path.join(place, name)).st_blocks * 512
        if time.monotonic() > until:
            break
    return total


def _inodes(system: System, what: str, path: str) -> Iterator[Finding]:
    usage = system.usage(path)
    if usage is None or usage.total_inodes == 0:  # btrfs and others make them as needed
        return
    share = 1 - usage.free_inodes / usage.total_inodes
    told = {"used_share": round(share, 4), "free_inodes": usage.free_inodes}
    fix = f"many small files are in the way: `sudo du --inodes -x {path} | sort -n | tail -20` shows where"
    if share > 0.99:
        yield _note.error(
            "no_inodes", f"{what} has no room for more files: {100 * share:.1f} % of its inodes are used", fix, **told
        )
    elif share > 0.9:
        yield _note.warning("few_inodes", f"{what} has few inodes left: {100 * share:.0f} % are used", fix, **told)


def _mount(system: System, what: str, mount: Mount, is_state: bool) -> Iterator[Finding]:
    point = mount.point
    if is_state and mount.kind in VOLATILE:
        yield _note.error(
            "volatile",
            f"{what} ({point}) is {mount.kind}: what is stored there is gone after a power cut, with bundles and "
            "messages that wait",
            "put paths.state on a real disk; an overlay (read-only root) wants a partition of its own for it",
            kind=mount.kind,
        )
    if mount.read_only:
        say = _note.error if is_state else _note.info
        yield say(
            "read_only",
            f"{what} ({point}) is mounted read-only" + (": nothing can be stored" if is_state else ""),
            "if nobody wanted that the kernel did it after an error: `sudo dmesg | grep -iE 'ext4|mmc|nvme'`, back up, "
            f"`sudo fsck {mount.source}` from another system, change the disk; else `sudo mount -o remount,rw {point}`",
        )
    if not mount.options & {"noatime", "relatime"} and not mount.read_only and mount.source.startswith("/dev"):
        yield _note.info(
            "atime",
            f"{what} ({point}) notes each reading of a file as a write",
            f"add noatime to its options in /etc/fstab, then `sudo mount -o remount {point}`: it spares flash",
        )
    yield from _errors(system, what, mount)


def _errors(system: System, what: str, mount: Mount) -> Iterator[Finding]:
    if mount.kind not in ("ext2", "ext3", "ext4"):
        return
    count = system.number(f"/sys/fs/ext4/{partition_of(system, mount)}/errors_count")
    if count:
        yield _note.error(
            "file_system_errors",
            f"{what} ({mount.point}) has recorded file system errors: {count}",
            "back up what matters, check it at the next start (`fsck.mode=force` on the kernel command line, or "
            f"`sudo fsck -f {mount.source}` from another system); if they come back change the disk",
            count=count,
        )
    elif count == 0:
        yield _note.ok("no_errors", f"{mount.kind} on {what} has recorded no errors")


def _promised(context: Context, state: str) -> Iterator[Finding]:
    """The quotas of the config have to fit, or the disk is full before they are reached."""
    if context.config is None:
        return
    usage = context.system.usage(state)
    quotas = quotas_mb(context.config)
    total = sum(quotas.values())
    if usage is not None and total * MB > 0.9 * usage.total_bytes:
        yield _note.warning(
            "quotas_too_large",
            f"the quotas of the config ({', '.join(f'{k} {v:g} MB' for k, v in quotas.items())}) together do not fit "
            f"a disk of {_size(usage.total_bytes)}",
            "lower evidence.quota_mb, recorder.quota_mb or outbox.quota_mb, or take a larger disk",
            quotas_mb=quotas,
        )


def quotas_mb(config: Config) -> dict[str, float]:
    """What the daemon may fill, by table of the config."""
    return {
        "outbox": config.outbox.quota_mb,
        **({"evidence": config.evidence.quota_mb} if config.evidence.use else {}),
        **({"recorder": config.recorder.quota_mb} if config.recorder.use else {}),
    }


def _syncs(context: Context) -> Iterator[Finding]:
    """Write as the outbox does, and see how long the disk takes to hold it."""
    system, state = context.system, context.state
    if not system.exists(state):
        return  # `permissions` tells
    try:
        times_ms = sync_times_ms(system.path(state), FSYNCS)
    except OSError as error:
        yield _unwritable(state, error)
        return
    yield sync_finding(state, times_ms)


def _unwritable(state: Path, error: OSError) -> Finding:
    if error.errno in (errno.EACCES, errno.EPERM):
        return _note.unknown(
            "sync_unknown",
            f"how fast {state} is was not measured: this user may not write there",
            "run it as root or as the service's user: `sudo edge doctor`",
        )
    fixes = {
        errno.ENOSPC: "free some space, as said for its disk",
        errno.EROFS: "see why it is read-only: `sudo dmesg | grep -iE 'ext4|mmc|nvme'`",
    }
    fix = fixes.get(error.errno or 0, "see `sudo dmesg | tail -30`; the disk may be failing")
    return _note.error(
        "cannot_write", f"nothing can be written to {state}: {error.strerror or error}", fix, errno=error.errno
    )


def sync_times_ms(folder: Path, count: int) -> list[float]:
    """Times of `count` writes of 4 KB that the disk has to hold; the file has no name and leaves nothing."""
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        times_ms = []
        for _ in range(count):
            os.write(file.fileno(), b"\0" * 4096)
            begin = time.perf_counter()
            os.fsync(file.fileno())
            times_ms.append(1000 * (time.perf_counter() - begin))
            if sum(times_ms) > 8000:
                break
    return times_ms


def sync_finding(state: Path, times_ms: Sequence[float]) -> Finding:
    """Whether the disk holds a verdict fast enough."""
    middle, most = statistics.median(times_ms), max(times_ms)
    text = f"a durable write to {state} takes {middle:.1f} ms, at most {most:.0f} ms"
    told = {"median_ms": round(middle, 2), "max_ms": round(most, 2), "writes": len(times_ms)}
    fix = (
        "each verdict waits for it: put paths.state on NVMe, a SATA SSD or an industrial card; "
        "see what else writes with `sudo iotop -o`"
    )
    if middle > TOO_SLOW_MS:
        return _note.error("sync_too_slow", text, fix, **told)
    if middle > SLOW_MS:
        return _note.warning("sync_slow", text, fix, **told)
    return _note.ok("sync", text, **told)


# --- wear ---


def _wear(system: System, found: Sequence[Mount | None]) -> Iterator[Finding]:
    disks = dict.fromkeys(disk_of(system, mount) for mount in found if mount is not None)
    for disk in disks:
        if disk is None:
            continue
        if disk.startswith("mmcblk"):
            yield from _card_wear(system, disk)
        elif disk.startswith(("nvme", "sd")):
            yield from _drive_wear(system, disk)


def _card_wear(system: System, disk: str) -> Iterator[Finding]:
    folder = f"/sys/block/{disk}/device"
    name = (system.text(f"{folder}/name") or "").strip()
    if system.text(f"{folder}/type") == "SD":
        yield _note.info(
            "sd_card",
            f"{disk} is an SD card{f' ({name})' if name else ''}, which does not tell how worn it is",
            "have a spare card with the same image at hand; better: paths.state on an SSD, or an industrial card",
            disk=disk,
        )
        return
    life = [int(part, 16) for part in re.findall(r"0x[0-9a-fA-F]+", system.text(f"{folder}/life_time") or "")]
    reserve = system.number(f"{folder}/pre_eol_info")
    if not life and reserve is None:
        yield _note.unknown("wear_unknown", f"{disk} does not tell its wear", "look into the data sheet of the module")
        return
    yield emmc_finding(disk, life, reserve or 0)


def emmc_finding(disk: str, life: Sequence[int], reserve: int) -> Finding:
    """Wear of an eMMC by its own registers.

    Args:
        life: of its areas, in tenths: 1 is up to 10 % used, 11 is beyond its life; 0 is not told.
        reserve: of spare blocks: 1 normal, 2: 80 % used, 3: 90 % used.
    """
    used = max(life, default=0)
    told: dict[str, Any] = {"disk": disk, "life_time": list(life), "pre_eol_info": reserve}
    text = f"the eMMC {disk} has used {'more than 100' if used > 10 else f'up to {10 * used}'} % of its life"
    fix = "plan the exchange of the module or move paths.state to an SSD; save the config and the genealogy now"
    if used > 10 or reserve >= 3:
        return _note.error(
            "worn_out", text + (", its spare blocks are nearly gone" if reserve >= 3 else ""), fix, **told
        )
    if used >= 9 or reserve == 2:
        return _note.warning(
            "worn", text + (", most of its spare blocks are used" if reserve == 2 else ""), fix, **told
        )
    return _note.ok("wear", text, **told)


def _drive_wear(system: System, disk: str) -> Iterator[Finding]:
    model = (system.text(f"/sys/block/{disk}/device/model") or "").strip()
    state = system.text(f"/sys/block/{disk}/device/state")
    if state is not None and state not in ("live", "running"):
        yield _note.error(
            "drive_state",
            f"the drive {disk} {model} is {state}",
            "see `sudo dmesg | grep -i nvme`; change it",
            disk=disk,
        )
    device = f"/dev/{re.sub(r'n[0-9]+$', '', disk)}" if disk.startswith("nvme") else f"/dev/{disk}"
    if system.user() != 0 or system.which("smartctl") is None:
        need = "run `sudo edge doctor`" if system.user() != 0 else "`sudo apt install smartmontools`"
        if system.user() != 0 and system.which("smartctl") is None:
            need = "`sudo apt install smartmontools`, then `sudo edge doctor`"
        yield _note.unknown("wear_unknown", f"the wear of {disk} {model} was not asked for", need, disk=disk)
        return
    ran = system.run(["smartctl", "--json", "--all", device], 10)
    yield smart_finding(disk, model, ran.out if ran else "")


def smart_finding(disk: str, model: str, text: str) -> Finding:
    """What `smartctl --json --all` says of a drive."""
    try:
        told = json.loads(text)
        health = told.get("nvme_smart_health_information_log") or {}
        passed = (told.get("smart_status") or {}).get("passed")
    except (ValueError, AttributeError):
        return _note.unknown(
            "wear_unknown", f"smartctl says nothing of {disk} {model}", f"try `sudo smartctl -a /dev/{disk}`", disk=disk
        )
    used, media = health.get("percentage_used"), health.get("media_errors", 0)
    data = {
        "disk": disk,
        "percentage_used": used,
        "media_errors": media,
        "critical_warning": health.get("critical_warning", 0),
    }
    fix = f"save the config and the genealogy, then change the drive; `sudo smartctl -a /dev/{disk}` tells more"
    if passed is False or health.get("critical_warning", 0):
        return _note.error("worn_out", f"the drive {disk} {model} says of itself that it fails", fix, **data)
    if (used or 0) >= 90 or media:
        return _note.warning(
            "worn",
            f"the drive {disk} {model} has used {used or 0} % of its life, with {media} media errors",
            fix,
            **data,
        )
    if passed is None:
        return _note.unknown(
            "wear_unknown",
            f"the drive {disk} {model} does not tell its health",
            f"try `sudo smartctl -a /dev/{disk}`",
            **data,
        )
    wear = f"has used {used} % of its life" if used is not None else "is well by its own account"
    return _note.ok("wear", f"the drive {disk} {model} {wear}", **data)


def _size(count: int) -> str:
    """
    >>> _size(950_000), _size(62_500_000_000)
    ('0.9 MB', '62.5 GB')
    """
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.{0 if count >= 1e8 else 1}f} MB"
