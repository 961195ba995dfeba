"""Who may import whom. Reads the imports of every module, also those inside functions and for types only.

    records <- settings <- pure <- adapters (each group alone) and stages <- application <- top
                           pure <- view

A new module fails the test until it has a place in the table.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Modules by layer. `name.*` stands for a package and all that is in it; an exact name goes before that.
LAYERS: Mapping[str, tuple[str, ...]] = {
    "records": ("edge", "edge.records", "edge.errors", "edge.part"),
    "settings": ("edge.settings", "edge.config", "edge.recipe", "edge.recipes"),
    "pure": (
        "edge.admission",
        "edge.alarms",
        "edge.align",
        "edge.annotate",
        "edge.anomaly",
        "edge.answer_times",
        "edge.boxes",
        "edge.capture.base",
        "edge.capture.board",
        "edge.capture.layout",
        "edge.capture.optics",
        "edge.chain",
        "edge.challenge",
        "edge.decide",
        "edge.drift.*",
        "edge.event",
        "edge.fuse",
        "edge.gate",
        "edge.gate_classifier",
        "edge.ledger",
        "edge.pairing",
        "edge.parity",
        "edge.part_record",
        "edge.preprocess",
        "edge.probation",
        "edge.shadow",
        "edge.steps",
        "edge.stopwatch",
        "edge.trend",
    ),
    "adapter pulse": ("edge.pulse",),
    "clock": ("edge.clock", "edge.errand", "edge.files", "edge.sqlite_file"),  # what every adapter may use
    "adapter bundle": ("edge.bundle.*",),
    "adapter capture": ("edge.capture.*",),
    "adapter chart": ("edge.answer_chart", "edge.drift.chart"),
    # Both hand their writing to one kind of thread.
    "adapter evidence": (
        "edge.evidence",
        "edge.evidence_folder",
        "edge.recorder",
        "edge.recording",
        "edge.spool",
    ),
    "adapter genealogy": ("edge.genealogy",),
    "adapter health": ("edge.health",),
    "adapter notify": ("edge.notify",),
    "adapter outbox": ("edge.outbox",),
    "adapter plc": ("edge.plc.*",),
    "adapter predictor": ("edge.predictor",),
    "adapter publish": ("edge.broker", "edge.live", "edge.publish", "edge.requests", "edge.session"),  # one session
    "adapter tally": ("edge.tally",),
    "stages": ("edge.detect", "edge.drift_watch", "edge.pipeline"),
    "application": (
        "edge.audit",
        "edge.bench",
        "edge.bundle_state",
        "edge.calibrate",
        "edge.changeover",
        "edge.daemon",
        "edge.drift_replay",
        "edge.doctor.*",
        "edge.incident",
        "edge.incident_export",
        "edge.incident_file",
        "edge.incident_replay",
        "edge.incumbent",
        "edge.installing",
        "edge.judges",
        "edge.fronts",
        "edge.gather",
        "edge.keeping",
        "edge.line",
        "edge.line_assembly",
        "edge.line_bench",
        "edge.line_care",
        "edge.loading",
        "edge.ports",
        "edge.proving",
        "edge.replay",
        "edge.serving",
        "edge.station",
        "edge.stop",
        "edge.stream_watch",
        "edge.update_child",
        "edge.updating",
    ),
    "view": ("edge.view.*",),
    "top": ("edge.cli", "edge.cli_bundle", "edge.cli_doctor", "edge.__main__"),
    "tools": ("tools.*",),
}

BELOW_ADAPTERS = ("records", "settings", "pure")
MAY_IMPORT: Mapping[str, tuple[str, ...]] = {
    "records": ("records",),
    "settings": ("records", "settings"),
    "pure": BELOW_ADAPTERS,
    "clock": (),
    "adapter": (*BELOW_ADAPTERS, "clock"),  # and its own group
    "stages": (*BELOW_ADAPTERS, "stages"),  # adapters come in through protocols
    "application": (*BELOW_ADAPTERS, "clock", "adapter", "stages", "application"),
    "view": (*BELOW_ADAPTERS, "view"),  # a subscriber like any other: it knows the messages, not the daemon
    "top": (*BELOW_ADAPTERS, "clock", "adapter", "stages", "application", "view", "top"),
    "tools": (*BELOW_ADAPTERS, "stages", "tools"),
}
# Beyond its layers: training measures what serving runs, writes the manifest that serving reads, and packs and signs
# what it unpacks and believes.
# The view gets to the broker by the same way as the daemon, and says the same when it does not.
ALSO: Mapping[str, tuple[str, ...]] = {
    "tools": (
        "edge.predictor",
        "edge.bundle",
        "edge.bundle.archive",
        "edge.bundle.manifest",
        "edge.bundle.roles",
    ),
    "view": ("edge.broker",),
}

# Libraries that only these modules may import. What is in neither table may not be imported by `edge` at all.
SOLE_IMPORTERS: Mapping[str, tuple[str, ...]] = {
    "amqtt": ("edge.view.*",),
    "cryptography": ("edge.bundle.*", "edge.doctor.*"),
    "matplotlib": ("edge.drift.chart",),
    "onnxruntime": ("edge.predictor",),
    "paddlelite": ("edge.predictor",),
    "paho": ("edge.broker", "edge.session", "edge.view.*"),
    "pymodbus": ("edge.plc.*",),
    "rich": ("edge.view.*",),
    "serial": ("edge.plc.*",),
    "pyarrow": ("edge.audit",),
    "sqlite3": ("edge.genealogy", "edge.outbox", "edge.sqlite_file"),
    "tomli": ("edge.settings",),
    "securesystemslib": ("edge.bundle.*",),
    "tomli_w": ("edge.settings",),
    "tomllib": ("edge.settings",),
    "tuf": ("edge.bundle.*",),
    "urllib3": ("edge.bundle.*",),
}
EVERYWHERE = ("cv2", "msgspec", "numpy")

# No I/O, clock, threads, chance or logging: what these libraries cannot do, these layers cannot do.
WITHOUT_EFFECTS = ("records", "pure", "stages")
# fmt: off
HARMLESS = frozenset((
    "__future__", "abc", "array", "bisect", "collections", "copy", "dataclasses", "enum", "fractions", "functools",
    "hashlib", "heapq", "itertools", "json", "math", "numbers", "operator", "re", "statistics", "string", "struct",
    "textwrap", "types", "typing", "unicodedata",
))
# fmt: on
EFFECTS = ("open", "print", "input", "exec", "eval", "__import__")


def layer_of(module: str) -> str | None:
    for exact in (True, False):
        for layer, patterns in LAYERS.items():
            if any(matches(module, pattern) for pattern in patterns if pattern.endswith(".*") != exact):
                return layer
    return None


def matches(module: str, pattern: str) -> bool:
    if pattern.endswith(".*"):
        return module == pattern[:-2] or module.startswith(pattern[:-1])
    return module == pattern


def imports(module: str, source: str, known: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    """Line and full name of every module that the source imports."""
    package = module if any(name.startswith(module + ".") for name in known) else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base
        elif isinstance(node, ast.Call) and "import_module" in (
            getattr(node.func, "attr", None),
            getattr(node.func, "id", None),
        ):
            name = node.args[0] if node.args else None
            yield node.lineno, str(name.value) if isinstance(name, ast.Constant) else "<computed>"


def violations(sources: Mapping[str, str]) -> list[str]:
    """Everything in the sources, by module name, that the tables do not allow."""
    found = []
    for module, source in sorted(sources.items()):
        layer = layer_of(module)
        if layer is None:
            found.append(f"{module}: has no place in the table of layers")
            continue
        for line, name in imports(module, source, sources):
            problem = import_problem(module, layer, name)
            if problem:
                found.append(f"{module}:{line}: {problem}")
        if layer in WITHOUT_EFFECTS:
            found.extend(f"{module}:{line}: calls {call}" for line, call in effects(source))
    return found


def import_problem(module: str, layer: str, name: str) -> str | None:
    top = name.partition(".")[0]
    if top in ("edge", "tools"):
        target = layer_of(name)
        if target is None:
            return f"imports {name}, which has no place in the table of layers"
        kind, target_kind = layer.partition(" ")[0], target.partition(" ")[0]
        if target == layer or target_kind in MAY_IMPORT[kind] or name in ALSO.get(layer, ()):
            return None
        return f"imports {name}: {layer} may not import {target}"
    if layer == "tools":
        return None
    if top in SOLE_IMPORTERS:
        allowed = any(matches(module, pattern) for pattern in SOLE_IMPORTERS[top])
        return None if allowed else f"imports {top}, which only {', '.join(SOLE_IMPORTERS[top])} may"
    if top in sys.stdlib_module_names:
        forbidden = layer in WITHOUT_EFFECTS and top not in HARMLESS
        return f"imports {top}: {layer} has no I/O, clock, threads, chance or logging" if forbidden else None
    return None if top in EVERYWHERE else f"imports {top}, which is not among the device's libraries"


def effects(source: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in EFFECTS:
            yield node.lineno, node.func.id


def read_sources(*packages: str) -> dict[str, str]:
    sources = {}
    for path in (p for package in packages for p in (ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return sources


def test_every_import_follows_the_layers() -> None:
    sources = read_sources("edge", "tools")
    assert "edge.pipeline" in sources
    found = violations(sources)
    assert not found, "\n".join(found)


def test_the_tables_name_no_layer_or_module_twice() -> None:
    patterns = [pattern for group in LAYERS.values() for pattern in group]
    assert len(patterns) == len(set(patterns))
    assert {layer.partition(" ")[0] for layer in LAYERS} == set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("module", "source", "expected", "why"),
    [
        ("edge.gate", "import time", "imports time", "a clock in a pure module"),
        ("edge.gate", "from pathlib import Path", "imports pathlib", "files in a pure module"),
        ("edge.decide", "def f():\n    import logging", "edge.decide:2: imports logging", "hidden in a function"),
        ("edge.boxes", "import numpy.random, os.path", "imports os", "the second of one line"),
        ("edge.drift", "import random", "imports random", "chance"),
        ("edge.ledger", "open('x')", "calls open", "no import is needed for it"),
        ("edge.records", "from edge.config import Config", "records may not import settings", "upwards"),
        ("edge.config", "from edge import event", "settings may not import pure", "a module out of its package"),
        ("edge.gate", "from edge.health import rss_bytes", "pure may not import adapter health", "upwards"),
        ("edge.outbox", "from edge.publish import P", "adapter outbox may not import adapter publish", "sideways"),
        ("edge.bundle.slots", "from edge.capture import base, camera", "may not import adapter capture", "sideways"),
        ("edge.bundle.slots", "from ..capture import camera", "may not import adapter capture", "a relative import"),
        ("edge.capture.camera", "from edge import daemon", "may not import application", "upwards"),
        ("edge.pipeline", "from edge.predictor import load", "stages may not import adapter", "past the protocol"),
        ("edge.detect", "import paddlelite.lite", "imports paddlelite, which only edge.predictor may", "a runtime"),
        ("edge.daemon", "import paho.mqtt.client", "imports paho, which only edge.broker, edge.session,", "a session"),
        ("edge.evidence", "import sqlite3", "imports sqlite3, which only edge.genealogy, edge.outbox", "a database"),
        ("edge.publish", "import serial", "imports serial, which only edge.plc.* may", "a second PLC"),
        (
            "edge.publish",
            "import paho.mqtt.client",
            "imports paho, which only",
            "the session speaks it, not the publisher",
        ),
        ("edge.view.web", "from edge.publish import P", "view may not import adapter", "only the way to the broker"),
        ("edge.view.web", "from edge.outbox import Outbox", "view may not import adapter", "a view is a subscriber"),
        ("edge.daemon", "from edge.view import demo", "application may not import view", "the daemon draws nothing"),
        ("edge.station", "from edge import cli", "application may not import top", "upwards"),
        ("edge.serving", "import tools.train", "application may not import tools", "the device has no tools"),
        ("edge.serving", "import paddle", "not among the device's libraries", "nor Paddle"),
        ("edge.gate", "import importlib\nimportlib.import_module('paddle')", "imports paddle", "by its name"),
        ("edge.cli", "from importlib import import_module\nimport_module('x')", "imports x", "an unknown library"),
        ("edge.daemon", "import importlib\nimportlib.import_module(name)", "imports <computed>", "cannot be judged"),
        ("tools.train", "from edge.outbox import Outbox", "tools may not import adapter", "training needs no outbox"),
        ("tools.prove", "from edge import daemon", "tools may not import application", "nor the daemon"),
        ("edge.novelty", "", "has no place in the table", "a new module says where it belongs"),
        ("edge.cli", "import edge.novelty", "edge.novelty, which has no place", "nor can it be imported"),
    ],
)
def test_a_planted_violation_is_found(module: str, source: str, expected: str, why: str) -> None:
    sources = {name: "" for name in read_sources("edge")} | {module: source}
    found = violations(sources)
    assert any(expected in text for text in found), f"{why}: {found}"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("edge.gate", "from __future__ import annotations\nimport cv2\nimport numpy as np\nfrom edge.recipe import X"),
        ("edge.bundle.slots", "from edge.bundle import manifest\nimport os"),
        ("edge.capture.simulated", "from edge.capture.board import draw_board\nfrom . import base"),
        ("edge.cli", "from edge.view import demo\nfrom edge import __version__"),
        ("edge.view.web", "import rich\nimport paho.mqtt.client\nfrom edge import broker, event"),
        ("tools.prove", "import paddle, os\nfrom edge.bundle import manifest\nfrom edge.predictor import load"),
    ],
)
def test_what_is_allowed_passes(module: str, source: str) -> None:
    sources = {name: "" for name in read_sources("edge")} | {module: source}
    assert violations(sources) == []
