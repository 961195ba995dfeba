"""Packaging of `edge`, what runs on the device. The toolchain (`tools`) runs from the checkout and is not installed."""

import os
import re
import subprocess
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "([^"]+)"', (ROOT / "edge/__init__.py").read_text(), re.MULTILINE).group(1)
README = ROOT / "README.md"

# Paddle Lite's only wheels: x86-64 Linux, Python up to 3.10. Everywhere else ONNX Runtime does the work.
HAS_PADDLE_LITE = "platform_system == 'Linux' and platform_machine == 'x86_64' and python_version < '3.11'"
LACKS_PADDLE_LITE = "platform_system != 'Linux' or platform_machine != 'x86_64' or python_version >= '3.11'"
ONNX = "onnxruntime>=1.17,<2"
VIEW = ["rich>=13"]
PARQUET = ["pyarrow>=16"]
CHART = ["matplotlib"]


class Build(build_py):
    """Leaves in the package when it was made (`edge.clock`): a box whose clock is before that has a wrong clock."""

    def run(self):
        super().run()
        made = commit_ts()
        if made and not self.editable_mode:
            Path(self.build_lib, "edge", "built.txt").write_text(f"{made}\n")


def commit_ts():
    """SOURCE_DATE_EPOCH, else the time of the commit, else "": not the clock of who builds, so that the same source
    gives the same wheel."""
    if given := os.environ.get("SOURCE_DATE_EPOCH", ""):
        return given
    if not (ROOT / ".git").exists():
        return ""
    command = ["git", "-c", "safe.directory=*", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


setup(
    name="edge-inspection",
    version=VERSION,
    description="Edge inspection runtime for factory lines: capture, gate, INT8 detector, verdicts over MQTT",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=["edge", "edge.*"]),
    cmdclass={"build_py": Build},
    package_data={"edge": ["py.typed", "*.toml", "plc/*.md"]},
    entry_points={"console_scripts": ["edge = edge.cli:entry"]},
    install_requires=[
        "numpy>=1.23,<2",  # Paddle's wheels are built for 1.x
        "opencv-python-headless>=4.8,<4.12",  # the cv2 of opencv-python without libGL; from 4.12 on it wants numpy 2
        "msgspec>=0.18,<1",
        "paho-mqtt>=2,<3",
        # Both pure Python; they are loaded only where the config has a [plc]. pymodbus changes its interface with minor
        # versions, 3.16.1 is the first whose serial writes have a time limit (3.16.0 was withdrawn).
        "pymodbus==3.16.1",
        "pyserial>=3.5,<4",
        # Whom bundles are believed. Pure Python on top of cryptography, which has wheels for aarch64.
        "tuf>=7,<8",
        "securesystemslib[crypto]>=1.6,<2",
        "urllib3>=2,<3",
        "tomli>=2; python_version < '3.11'",
        "tomli-w>=1,<2",
        f"paddlelite==2.13rc0; {HAS_PADDLE_LITE}",
        f"{ONNX}; {LACKS_PADDLE_LITE}",
    ],
    extras_require={
        "chart": CHART,  # `edge replay --chart`
        "onnx": [ONNX],
        "parquet": PARQUET,  # `edge audit export --out FILE.parquet`
        "view": VIEW,
        "demo": ["amqtt>=0.11,<0.13", *VIEW],
        # paddleslim==2.6.0 belongs here too, but drags in opencv-python, which overwrites our cv2: it is installed
        # without its dependencies, and what it really needs is listed here instead.
        "tools": [
            "paddlepaddle==2.6.2",
            "paddle2onnx==1.2.11",
            ONNX,
            "setuptools",  # paddle imports it without saying so
            "tqdm",
            *CHART,
            "pandas",
            "pillow",
            "pycocotools>=2.0.8,<3",  # the reference of mAP50-95
            "pyyaml",
            "pyzmq",
            "requests",
            "scipy",
        ],
        "test": [
            "packaging",
            "psutil",
            "pytest>=8",
            "pytest-timeout",
            "pytest-xdist",  # the toolchain's tests, on all cores
            "hypothesis",
            "ruff",
            "mypy",
            "types-pyserial",
            *PARQUET,
        ],
    },
)
