"""A clean arm64 Debian under emulation: installed without a network, and used as a box on a line would be.

`python -m tests.arm64 FOLDER` runs all steps and writes FOLDER/report.json. It needs root, debootstrap,
qemu-aarch64-static, mosquitto and a package mirror; FOLDER keeps what is slow to make, so that a second run is quick.
"""
