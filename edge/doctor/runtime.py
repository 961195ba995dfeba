"""What runs the models here: Python, inference runtimes, their providers and kernels."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from edge.config import Config
from edge.doctor.context import Context
from edge.doctor.finding import Finding, Reporter
from edge.doctor.system import System
from edge.predictor import CPU, installed_runtimes

SUBJECT: Final = "runtime"
PYTHONS: Final = ((3, 10), (3, 12))  # first and last release that is supported
LOAD_S: Final = 25.0  # a slow card takes seconds to read a runtime for the first time
CPU_FILES: Final = "/sys/devices/system/cpu"
TRY: Final = {
    "paddlelite": "import paddlelite.lite; print('[]')",
    "onnxruntime": "import json, onnxruntime; print(json.dumps(onnxruntime.get_available_providers()))",
}
INSTALL_FIX: Final = "run systemd/install.sh again, or `pip install onnxruntime`; README says what a Jetson takes"
# Cores with dot products that Paddle Lite's own table of CPU part numbers lacks: it then leaves its faster INT8
# kernels out.
WITHOUT_DOT: Final = {0xD0B: "Cortex-A76", 0xD42: "Cortex-A78AE"}
DOT: Final = "asimddp"  # what the kernel calls these instructions

_note = Reporter(SUBJECT)


def check(context: Context) -> Iterator[Finding]:
    """Python, each runtime that is installed, its kernels on this processor, threads."""
    yield python_finding(context.system.python())
    yield from _runtimes(context)
    cores = cores_of(context.system.text("/proc/cpuinfo") or "")
    yield from dot_findings(cores, "paddlelite" in installed_runtimes(), context.system.machine())
    if context.config is not None:
        yield from _threads(context.config, _core_count(context.system))


def python_finding(version: tuple[int, int, int]) -> Finding:
    """Whether this release is one that was tried."""
    text = "Python " + ".".join(map(str, version))
    if PYTHONS[0] <= version[:2] <= PYTHONS[1]:
        return _note.ok("python", text)
    return _note.error(
        "python",
        f"{text} is not supported",
        "install it with Python 3.10, 3.11 or 3.12: systemd/install.sh --python PATH",
    )


def _runtimes(context: Context) -> Iterator[Finding]:
    installed = installed_runtimes()
    if not installed:
        yield _note.error("no_runtime", "no inference runtime is installed: no model can run", INSTALL_FIX)
    prefer = context.config.runtime.prefer if context.config is not None else "auto"
    if installed and prefer != "auto" and prefer not in installed:
        has = ", ".join(installed)
        yield _note.warning(
            "preferred_missing",
            f"runtime.prefer is {prefer}, which is not installed; there is {has}",
            f'install it, or set prefer = "{next(iter(installed))}"',
        )
    if "onnxruntime" in installed and context.system.machine() == "aarch64":
        yield from _cpu_files(context.system)
    for name, version in installed.items():
        yield from _loads(context, name, version)


def _cpu_files(system: System) -> Iterator[Finding]:
    """On ARM ONNX Runtime ends the process that loads it when it cannot count the cores."""
    hidden = [name for name in ("possible", "present") if system.text(f"{CPU_FILES}/{name}") is None]
    if hidden:
        yield _note.error(
            "cpu_files_hidden",
            f"{' and '.join(hidden)} of {CPU_FILES} cannot be read: ONNX Runtime aborts as soon as it is loaded",
            "let the service see them: no InaccessiblePaths= over /sys in a drop-in; in a container mount /sys",
        )


def _loads(context: Context, name: str, version: str) -> Iterator[Finding]:
    """Loaded in a child process: a library that does not fit can end the process that loads it."""
    ran = context.system.run([sys.executable, "-c", TRY[name]], LOAD_S)
    told = {"runtime": name, "version": version}
    if ran is None:
        text = f"whether {name} {version} loads was not tried: this user may not run {sys.executable}"
        yield _note.unknown("load_unknown", text, "run `sudo edge doctor`", **told)
        return
    if ran.code != 0:
        how = f" (signal {-ran.code})" if ran.code is not None and ran.code < 0 else ""
        yield _note.error(
            "does_not_load",
            f"{name} {version} does not load{how}: {ran.said}",
            f"install it again for this Python and this processor; {INSTALL_FIX}",
            **told,
        )
        return
    providers = _listed(ran.out)
    text = f"{name} {version}" + (
        f" with {', '.join(p.removesuffix('ExecutionProvider') for p in providers)}" if providers else ""
    )
    yield _note.ok("loads", text, providers=providers, **told)
    if name == "onnxruntime" and context.config is not None:
        yield from _providers(context.config, providers)


def _listed(text: str) -> list[str]:
    try:
        found = json.loads(text.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return []
    return [str(name) for name in found] if isinstance(found, list) else []


def _providers(config: Config, available: list[str]) -> Iterator[Finding]:
    absent = [name for name in config.runtime.providers if name not in available]
    if absent:
        yield _note.error(
            "no_provider",
            f"runtime.providers names {', '.join(absent)}, which this build of ONNX Runtime lacks: it has "
            f"{', '.join(available)}",
            "install the build for this hardware (a Jetson: NVIDIA's onnxruntime-gpu for its JetPack), or take it out",
            absent=absent,
            available=available,
        )
    elif CPU not in config.runtime.providers:
        yield _note.info(
            "no_fallback", "runtime.providers has no CPUExecutionProvider to fall back to", "add it as the last one"
        )


# --- kernels ---


@dataclass(frozen=True)
class Core:
    """One core as /proc/cpuinfo tells it; part 0: not told."""

    part: int
    features: frozenset[str]


def cores_of(cpuinfo: str) -> list[Core]:
    """All cores of an ARM box; of an x86 box they have no part."""
    cores = []
    for block in re.split(r"\n\s*\n", cpuinfo):
        if not re.search(r"^processor\s*:", block, re.MULTILINE):
            continue
        part = re.search(r"^CPU part\s*:\s*(0x[0-9a-fA-F]+)", block, re.MULTILINE)
        features = re.search(r"^(?:Features|flags)\s*:\s*(.*)$", block, re.MULTILINE)
        cores.append(Core(int(part[1], 16) if part else 0, frozenset(features[1].split() if features else ())))
    return cores


def dot_findings(cores: list[Core], has_paddle_lite: bool, machine: str) -> Iterator[Finding]:
    """Whether INT8 gets the processor's dot products."""
    if machine not in ("aarch64", "arm64") or not cores:
        return
    if not any(DOT in core.features for core in cores):
        yield _note.info(
            "no_dot",
            "this processor has no INT8 dot products: INT8 gains little over FP32 here",
            "`edge bundle status` shows which model is faster on this box",
        )
        return
    lacking = sorted({WITHOUT_DOT[core.part] for core in cores if DOT in core.features and core.part in WITHOUT_DOT})
    untold = [core for core in cores if core.part == 0]
    told = {"parts": sorted({f"{core.part:#x}" for core in cores}), "paddlelite": has_paddle_lite}
    if not lacking and not untold:
        yield _note.ok("dot", "the processor has INT8 dot products", **told)
        return
    what = f"{', '.join(lacking)} has" if lacking else "not every core tells its part number; the processor has"
    text = f"{what} INT8 dot products, but Paddle Lite does not know this core and leaves its kernels for them out"
    fix = (
        "nothing is wrong with the verdicts, INT8 takes up to twice as long as it could. Installing a bundle measures "
        'and takes what is fastest; ONNX Runtime (runtime.prefer = "onnxruntime") finds these instructions by itself; '
        "or build Paddle Lite with the part number added to lite/core/device_info.cc"
    )
    say = _note.warning if has_paddle_lite else _note.info
    yield say("dot_unused", text, fix, **told)


def _threads(config: Config, cores: int) -> Iterator[Finding]:
    threads = config.runtime.threads
    if threads > cores:
        yield _note.warning(
            "too_many_threads",
            f"runtime.threads is {threads}, and this box has {cores} cores: they wait for each other",
            f"set threads = {max(cores - 1, 1)} or less",
            threads=threads,
            cores=cores,
        )
    elif threads == cores > 1:
        yield _note.info(
            "all_cores",
            f"runtime.threads takes all {cores} cores: capture and the PLC link wait for inference",
            f"set threads = {cores - 1}",
            threads=threads,
            cores=cores,
        )
    else:
        yield _note.ok("threads", f"{threads} of {cores} cores for inference", threads=threads, cores=cores)


def _core_count(system: System) -> int:
    return len(re.findall(r"^processor\s*:", system.text("/proc/cpuinfo") or "", re.MULTILINE)) or 1
