"""`python -m tests.arm64 FOLDER`: every step on the emulated box, with its evidence; exit code 0 when all was shown."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.arm64 import box_doctor, installing, line, root, stick, verdicts
from tests.arm64.guest import Guest
from tests.arm64.report import Report, StepError

REPOSITORY = Path(__file__).resolve().parents[2]
PRODUCTS = ("pcb", "ballscrew")


class Trial:
    """The steps, in order, on one folder.

    Args:
        work: keeps root, wheelhouse, logs and the report.
        source: the checkout that is tried.
    """

    def __init__(self, work: Path, source: Path) -> None:
        self.work = work
        self.source = source
        self.report = Report(work / "report.json")
        shown = {installing.WHEELHOUSE: work / "wheelhouse", verdicts.MODELS: source / "models"}
        self.guest = Guest(work / "root", shown)

    def steps(self) -> dict[str, Callable[[], None]]:
        """All steps by their short names."""
        return {
            "root": self.make_root,
            "wheelhouse": self.make_wheelhouse,
            "install": self.install,
            "verdicts": self.verdicts,
            "service": self.service,
            "doctor": self.doctor,
            "stick": self.stick,
        }

    def make_root(self) -> None:
        """A clean Debian for arm64."""
        root.register_handler(self.report)
        root.make(self.guest.root, self.work / "debs", self.report)

    def make_wheelhouse(self) -> None:
        """All that the box needs, in one folder."""
        installing.make_wheelhouse(self.source, self.work / "wheelhouse", self.report)

    def install(self) -> None:
        """On the box, without a network."""
        installing.install(self.guest, self.work / "install.log", self.report)
        installing.check_install(self.guest, self.report)

    def verdicts(self) -> None:
        """Golden images: as on x86."""
        for product in PRODUCTS:
            verdicts.check(self.guest, self.source, product, self.work, self.report)

    def doctor(self) -> None:
        """`edge doctor` on the emulated box."""
        box_doctor.check(self.guest, self.work, self.report)

    def service(self) -> None:
        """The daemon by the unit's own command line."""
        installing.forget(self.guest)
        line.install_first_bundle(self.guest, f"{verdicts.MODELS}/pcb", self.report)
        truth = line.place_images(self.guest, self.source / "models/pcb")
        line.check_service(self.guest, self.work, truth, self.report)

    def stick(self) -> None:
        """A bundle from a folder that plays the stick."""
        stick.check(self.guest, self.source / "models/pcb", self.work, self.report)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps; 0 when each has shown what it should."""
    parser = argparse.ArgumentParser("python -m tests.arm64", description=__doc__)
    parser.add_argument("folder", type=Path, help="keeps what is slow to make; some 2 GB")
    parser.add_argument("--steps", help="only these, by name, separated by commas")
    parser.add_argument("--commit", help="try this commit, not the checkout as it lies there")
    parser.add_argument("--fresh", action="store_true", help="make root and wheelhouse anew")
    options = parser.parse_args(arguments)
    lacking = root.missing()
    if lacking:
        print(f"the emulated box cannot be made here: {lacking}", file=sys.stderr)
        return 2
    options.folder.mkdir(parents=True, exist_ok=True)
    trial = Trial(options.folder.resolve(), _source(options.folder.resolve(), options.commit))
    if options.fresh:
        for name in ("root", "wheelhouse"):
            shutil.rmtree(options.folder / name, ignore_errors=True)
    return 0 if run(trial, options.steps.split(",") if options.steps else list(trial.steps())) else 1


def run(trial: Trial, names: Sequence[str]) -> bool:
    """Run the named steps, until one fails."""
    steps = trial.steps()
    try:
        for name in names:
            with trial.report.step(f"{name}: {steps[name].__doc__}"):
                steps[name]()
    except (StepError, subprocess.TimeoutExpired, AssertionError):
        return False
    return trial.report.passed


def _source(work: Path, commit: str | None) -> Path:
    if commit is None:
        return REPOSITORY
    source = work / "source"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir()
    archive = subprocess.run(["git", "archive", commit], cwd=REPOSITORY, capture_output=True, check=True, timeout=60)
    subprocess.run(["tar", "-x", "-C", source], input=archive.stdout, check=True, timeout=60)
    return source


if __name__ == "__main__":
    sys.exit(main())
