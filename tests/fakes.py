"""Stand-ins for what no test machine has: time that is told, and a broker line that only listens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from edge.detect import Seen
from edge.errors import OutboxError
from edge.event import Envelope, LedgerCounts, OutboxCounts
from edge.outbox import Draft
from edge.preprocess import Image, Placement
from edge.records import Detections, Frame


class FakeClock:
    """Time stands still until it is told to move."""

    def __init__(self) -> None:
        self.now_ns = 1_000_000_000

    def mono_ns(self) -> int:
        return self.now_ns

    def ts(self) -> float:
        return 1_800_000_000.0 + self.now_ns / 1e9

    def ok(self) -> bool:
        return True

    def advance(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)


class FakeWire:
    """A live side that keeps what it is told. Implements `edge.ports.Wire`."""

    def __init__(self, connected: bool = True) -> None:
        self.is_connected = connected
        self.told: list[tuple[str, Envelope]] = []
        self.images: list[tuple[str, bytes]] = []
        self.cleared: list[str] = []

    def live(self, topic: str, message: Envelope, retain: bool = False) -> None:
        self.told.append((topic, message))

    def live_bytes(self, topic: str, payload: bytes) -> bool:
        self.images.append((topic, payload))
        return self.is_connected

    def clear(self, topic: str) -> None:
        self.cleared.append(topic)

    def connected(self) -> bool:
        return self.is_connected

    def live_dropped(self) -> int:
        return 0


class FullStore:
    """A store on a disk that is full while `full` is set, in front of a real one."""

    def __init__(self, store: object) -> None:
        self._store = store
        self.full = False

    def _real(self, name: str) -> Callable[..., object]:
        if self.full:
            raise OutboxError("outbox.db cannot store a message: disk full; free some space")
        return getattr(self._store, name)

    def add(self, drafts: Sequence[Draft], ledger: LedgerCounts, parts: int) -> list[int]:
        return self._real("add")(drafts, ledger, parts)

    def save_ledger(self, counts: LedgerCounts, parts: int) -> None:
        self._real("save_ledger")(counts, parts)

    def counts(self) -> OutboxCounts:
        return self._store.counts()


class ScriptedDetector:
    """Finds what it is told to find, or fails as told. Implements `edge.pipeline.FrameDetector`."""

    def __init__(self, *answers: Detections | Exception) -> None:
        self.answers = list(answers)
        self.asked = 0

    def look(self, image: Image, lap: Callable[[str], None]) -> Seen:
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        lap("predict")
        if isinstance(answer, Exception):
            raise answer
        features = np.zeros((1, 2, 4, 4), np.float32)
        return Seen(answer, features, Placement(1.0, 0, 0), image.shape[1])


def found(confidence: float, class_id: int = 0) -> Detections:
    """One box of 20 x 30 pixels."""
    return Detections(
        np.array([[10, 10, 30, 40]], np.float32), np.array([confidence], np.float32), np.array([class_id], np.int64)
    )


def textured(seed: int = 0, size: int = 64) -> Image:
    """A sharp image."""
    return np.random.default_rng(seed).integers(0, 256, (size, size), dtype=np.uint8)


def flat(size: int = 64) -> Image:
    """An image without any detail."""
    return np.full((size, size), 128, np.uint8)


def frame(image: Image, number: int = 1, camera: str = "cam1", captured_ns: int = 1_000_000_000) -> Frame:
    """A frame as a camera would deliver it."""
    return Frame(image, camera, number, captured_ns, 1_800_000_000.0, f"{number}.png")


def decoded(payload: bytes) -> dict[str, object]:
    """A JSON payload."""
    return msgspec.json.decode(payload)
