"""The device runtime: capture, gate, detect, decide, and publish without losing a verdict."""

__version__ = "0.1.0"
