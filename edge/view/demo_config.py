"""The site config of the demo's line, to be read and tried out by a curious user."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from edge import config, recipe
from edge.errors import EdgeError
from edge.view.demo_plc import RATE, port_of
from edge.view.state import NodeId

STATION = NodeId("demo", "line1", "edge")
# Under the PLC: a frame is at most 50 ms away from any moment, and drawing it takes a fifth of the time of one core.
TRIGGERED_FPS = 10.0
WINDOW_MS = 90.0  # so that a frame which was drawn late still belongs to its trigger


def write_config(folder: Path, bundle: Path, seed: int, mqtt: config.Mqtt, *, line: bool = False) -> Path:
    """Write config and recipe into `folder`; the config's path.

    Args:
        line: a PLC on a serial port triggers; else each frame is a part.

    Raises:
        EdgeError: they cannot be written.
    """
    text = f"""\
# Written by the demo: a simulated line on this machine.
[station]
site = {_quoted(STATION.site)}
line = {_quoted(STATION.line)}
node = {_quoted(STATION.node)}

[paths]
state = {_quoted(str(folder / "state"))}
bundle = {_quoted(str(bundle.resolve()))}
{_recipe_line(folder, bundle, line)}
[mqtt]
host = {_quoted(mqtt.host)}
port = {mqtt.port}

[publish]
health_s = 2.0
{_plc_table(folder) if line else ""}
[[camera]]
source = "simulated"
id = "top"
seed = {seed}
{_pace() if line else ""}"""
    path = folder / "edge.toml"
    try:
        path.write_text(text, "utf-8")
        (folder / "daemon.log").touch()
    except OSError as error:
        raise EdgeError(
            f"{error.filename} cannot be written: {error.strerror}; choose another folder with --state"
        ) from error
    return path


def _plc_table(folder: Path) -> str:
    return f"""
[plc]  # python -m edge.plc.simulate plays it on a pty
port = {_quoted(str(port_of(folder)))}
"""


def _pace() -> str:
    return f"fps = {TRIGGERED_FPS}\nwindow_ms = {WINDOW_MS}\n"


def _recipe_line(folder: Path, bundle: Path, line: bool) -> str:
    """The bundle's recipe with drift judged by this line: drawn boards are no photographs of real ones.

    Under a PLC the answer has to come before the next part does. Empty where the bundle's recipe cannot be read: the
    daemon will say so.
    """
    try:
        own = recipe.load(bundle / "recipe.toml")
        changed = msgspec.structs.replace(own, drift=msgspec.structs.replace(own.drift, baseline="line"))
        if line:
            changed = msgspec.structs.replace(changed, takt_time_ms=1000 / RATE, answer_ms=1000 / RATE)
        path = folder / "recipe.toml"
        path.write_text(recipe.dump(changed), "utf-8")
    except (EdgeError, OSError):
        return ""
    return f"recipe = {_quoted(str(path))}\n"


def _quoted(text: str) -> str:
    """A TOML basic string; JSON's escapes are a subset of its own."""
    return json.dumps(text, ensure_ascii=False)
