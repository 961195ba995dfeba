"""Errors of the toolchain; part of the project's error tree, so the command line prints them plainly."""

from __future__ import annotations

from edge.errors import EdgeError


class ToolError(EdgeError):
    """A step cannot go on: bad arguments, a missing file, a library that refused."""


class DataError(ToolError):
    """A data set that cannot be used; the message names the file, and the line where there is one."""
