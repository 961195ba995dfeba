"""The error tree: everything this package raises on purpose descends from `EdgeError`.

A message names the thing, the value and the remedy, since it is what the operator reads: the command line
prints it without a traceback. Errors of libraries are wrapped at the adapter that calls them, with `from`.
"""

# Set in the environment, it shows traces of faults: to a developer, never to an operator.
DEBUG_VARIABLE = "EDGE_DEBUG"


class EdgeError(Exception):
    """Base of all errors of this project; its text is meant for the operator."""


class ConfigError(EdgeError):
    """A site config or recipe that cannot be used. `problems` holds every finding, not just the first."""

    def __init__(self, origin: str, problems: list[str]) -> None:
        self.origin = origin
        self.problems = list(problems)
        lines = "\n".join(f"  - {problem}" for problem in self.problems)
        super().__init__(f"{origin} cannot be used:\n{lines}")


class ImageError(EdgeError):
    """An image that the pipeline cannot take: wrong type, shape or depth."""


class BundleError(EdgeError):
    """A model bundle that is incomplete, altered, or not made for this device."""


class PredictorError(EdgeError):
    """An inference runtime that is missing, cannot load a model, or failed while running it."""


class CaptureError(EdgeError):
    """A source that cannot deliver frames now; the camera thread closes it and opens it again."""


class FrameUnreadableError(CaptureError):
    """One frame was due and could not be read (truncated file, bad data); the source itself goes on."""


class SourceEndedError(CaptureError):
    """The source has no more frames and is not set to start over."""


class OutboxError(EdgeError):
    """The outbox cannot store a message durably (disk full, read-only, unreadable file)."""


class GenealogyError(EdgeError):
    """The genealogy cannot be opened, read or written."""


class GenealogyDamagedError(GenealogyError):
    """The file is no genealogy of ours, or no longer: damaged, cut short or exchanged."""


class PublishError(EdgeError):
    """The MQTT session cannot be set up as configured (unreadable certificate, refused password)."""


class PlcError(EdgeError):
    """A serial port that cannot be opened or no longer works; the link closes it and opens it again."""


class UsageError(EdgeError):
    """A command called with arguments that make no sense together."""


class IncidentError(EdgeError):
    """A recording or an incident file that cannot be written, read or judged again."""


class TrustError(BundleError):
    """Something of a bundle repository that is not believed. `code` says why in one word, for machines."""

    def __init__(self, code: str, text: str) -> None:
        self.code = code
        super().__init__(text)
