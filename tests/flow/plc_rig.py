"""A daemon under the simulated PLC: config, the PLC as a process of its own, and what wire, broker and disk say."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge.genealogy import GenealogyReader
from tests.flow.rig import PCB, REPOSITORY, Client, Daemon


@dataclass(frozen=True)
class Station:
    """How the station is set up.

    Attributes:
        budget_ms: trigger to answer at most. takt_ms: as the recipe says it; None: none.
        recipes: so many recipes, numbered from 1; 0: the bundle's own alone.
        stalling: the second camera stalls for 2 s every 20 s.
        fired: the PLC fires the cameras, and their frames are paired by counter; else they run free.
    """

    cameras: int = 1
    fps: float = 30.0
    size: int = 640
    bundle: Path = PCB
    runtime: str = "auto"
    budget_ms: float = 2000.0
    takt_ms: float | None = None
    queue: int = 4
    dialect: str = "ascii"
    recipes: int = 0
    stalling: bool = False
    fired: bool = False
    defect_rate: float = 0.1
    more: str = ""  # of the config


def make_daemon(folder: Path, port: int, station: Station) -> Daemon:
    """The daemon with its config, not started. Its serial port is `folder / "plc"`."""
    tables = (
        f'image_every_s = 1.0\n[runtime]\nprefer = "{station.runtime}"\n'
        f'[plc]\nport = "{folder / "plc"}"\ndialect = "{station.dialect}"\nqueue = {station.queue}\n{station.more}'
    )
    daemon = Daemon(folder, port, _cameras(folder, station), station.bundle, tables)
    text = daemon.config.read_text().replace("[paths]", f"[paths]\n{_recipes(folder, station)}")
    daemon.config.write_text(text)
    return daemon


def _cameras(folder: Path, station: Station) -> str:
    """Raw frames from a process each."""
    tables = []
    for i in range(1, station.cameras + 1):
        command = [
            sys.executable, "-m", "tests.flow.frame_server", "--seed", str(i), "--fps", str(station.fps),
            "--size", str(station.size), "--defect-rate", str(station.defect_rate),
        ]  # fmt: skip
        if station.fired:
            command += ["--trigger", str(_socket(folder, i))]
        if station.stalling and i == 2:
            command += ["--stall-every", "20", "--stall-s", "2"]
        tables.append(
            f'[[camera]]\nid = "cam{i}"\nsource = "pipe"\ncommand = {json.dumps(command)}\nwidth = {station.size}\n'
            f'height = {station.size}\nformat = "gray"\nstall_s = {3600 if station.fired else 5}\nwindow_ms = 60.0\n'
            f'pairing = "{"counter" if station.fired else "time"}"\n'
        )
    return "\n".join(tables)


def _socket(folder: Path, camera: int) -> Path:
    return folder / f"cam{camera}.sock"


def _recipes(folder: Path, station: Station) -> str:
    """The bundle's recipe with a budget, once or several times; the line of [paths] that names it."""
    text = (station.bundle / "recipe.toml").read_text().splitlines()
    body = "\n".join(line for line in text if not line.startswith("name"))
    takt = f"takt_time_ms = {station.takt_ms}\n" if station.takt_ms else ""
    body = f"{takt}answer_ms = {station.budget_ms}\n{body}\n"
    if not station.recipes:
        (folder / "recipe.toml").write_text(body)
        return f'recipe = "{folder / "recipe.toml"}"'
    (folder / "recipes").mkdir(exist_ok=True)
    for number in range(1, station.recipes + 1):
        (folder / "recipes" / f"{number}.toml").write_text(f'name = "r{number}"\nnumber = {number}\n{body}')
    return f'recipes = "{folder / "recipes"}"'


@dataclass
class Plc:
    """One run of the simulated PLC as a process; it makes the pty that the daemon opens."""

    folder: Path
    station: Station
    arguments: list[str] = field(default_factory=list)
    name: str = "plc"

    def start(self, **options: object) -> Plc:
        """`rate=5, seconds=3` stand for `--rate 5 --seconds 3`."""
        given = [text for key, value in options.items() for text in (f"--{key.replace('_', '-')}", str(value))]
        for camera in range(1, self.station.cameras + 1) if self.station.fired else ():
            given += ["--fire", str(_socket(self.folder, camera))]
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "edge.plc.simulate", "--link", str(self.folder / "plc"),
                "--dialect", self.station.dialect, "--report", str(self._file("json")),
                "--log", str(self._file("jsonl")), *given, *self.arguments,
            ],
            cwd=REPOSITORY,
        )  # fmt: skip
        return self

    def wait(self, timeout_s: float) -> int:
        """Until the run ends; its exit code."""
        return self.process.wait(timeout_s)

    def end(self) -> None:
        """Whatever it is doing."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)

    def report(self) -> dict[str, Any]:
        """Its own account."""
        return dict(json.loads(self._file("json").read_text()))

    def answers(self) -> list[dict[str, Any]]:
        """Every settled trigger: no, serial, recipe, result_id, word, reason, ms."""
        text = self._file("jsonl").read_text()
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def _file(self, ending: str) -> Path:
        return self.folder / f"{self.name}.{ending}"


def outcomes(state: Path) -> dict[int, str]:
    """Part number -> what its row says became of it; of a part that is void, `void`."""
    with GenealogyReader(state / "genealogy.db") as reader:
        found: dict[int, str] = {}
        for row in reader.rows():
            if row.kind == "part" and row.part is not None:
                found[row.part] = row.outcome or ""
            elif row.kind == "void" and row.part is not None:
                found[row.part] = "void"
    return found


def disagreements(answers: list[dict[str, Any]], client: Client, state: Path) -> list[str]:
    """Where wire, broker and disk do not say the same; empty when they agree."""
    rows = outcomes(state)
    parts = {part["part"]: part for part in client.json("/edge/part")}
    problems = []
    for answer in (a for a in answers if a["result_id"]):
        number, word = answer["result_id"], answer["word"]
        if word == "OK" and rows.get(number) != "OK":
            problems.append(f"OK of part {number} on the wire, and its row says {rows.get(number)}")
        elif number in parts and word not in (parts[number]["say"], "LATE"):
            problems.append(f"part {number} was {word} on the wire and {parts[number]['say']} over MQTT")
        elif number in parts and parts[number]["serial"] != answer["serial"]:
            problems.append(f"part {number} is {answer['serial']} on the wire and {parts[number]['serial']} over MQTT")
        elif number in parts and answer["recipe"] and parts[number]["recipe"] != f"r{answer['recipe']}":
            problems.append(f"part {number} was judged by {parts[number]['recipe']}, asked was r{answer['recipe']}")
    told = {number for number, outcome in rows.items() if outcome != "void"}
    if told != set(parts):
        problems.append(f"rows and messages differ in parts {sorted(told ^ set(parts))[:10]}")
    seqs = sorted(client.durable())
    if seqs != list(range(1, len(seqs) + 1)):
        problems.append(f"{seqs[-1] - len(seqs)} of {seqs[-1]} messages are missing")
    health = client.json("/health")[-1]
    if not health["balanced"] or health["in_flight"]:
        problems.append(f"the ledger does not balance: {health['ledger']}, in flight {health['in_flight']}")
    settled = sum(health["ledger"]["verdicts"].values()) + sum(health["ledger"]["losses"].values())
    if settled != health["ledger"]["triggers"]:
        problems.append(f"triggers {health['ledger']['triggers']}, settled {settled}")
    return problems


def words(answers: list[dict[str, Any]]) -> Counter[str]:
    """How often each word was heard."""
    return Counter(answer["word"] for answer in answers)
