"""Offline toolchain: trains, quantizes, measures and bundles the detectors that `edge` runs."""
