"""Offline toolchain: trains, quantizes, measures and bundles the detectors that `edge` runs."""

# First of all imports: OpenCV loaded after Paddle cannot read PNG files, since both bring a zlib of their own.
import cv2  # noqa: F401
