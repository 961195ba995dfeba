"""A station under its PLC for minutes: every trigger answered, the ledger balanced, and how long answers take.

    python -m tests.flow.soak_plc [--minutes 10] [--rate 20] [--cameras 3] [--bundle models/pcb]
                                  [--stall] [--pull 30] [--garbage 5] [--recipes] [--dialect ascii] [--triggered]

Runs the daemon with cameras that write raw 640x640 frames, a real mosquitto, and the simulated PLC on a pty. Prints
what the PLC, the broker and the disk say, and exits with 1 where they disagree.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.brokers import Broker, wait_until
from tests.flow.rig import PCB, REPOSITORY, Client, Daemon


def main() -> int:
    """Run the soak; 0 when all three agree."""
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="edge-plc-") as name, Broker(Path(name) / "broker") as broker:
        folder, client = Path(name), Client(broker.port)
        daemon = Daemon(folder, broker.port, cameras(options, folder), options.bundle, plc(options, folder))
        where = recipes(folder, options)
        daemon.config.write_text(daemon.config.read_text().replace("[paths]", f"[paths]\n{where}"))
        player = simulator(options, folder)
        daemon.start()
        code = player.wait(options.minutes * 60 + 120)
        time.sleep(1.0)
        rss_mb = daemon.rss_mb()
        stopped = daemon.stop()
        wait_until(lambda: client.json("/edge/state")[-1]["state"] == "offline", 20, "the last word")
        client.close()
        report = json.loads((folder / "plc.json").read_text())
        answers = [json.loads(line) for line in (folder / "plc.jsonl").read_text().splitlines()]
        if options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
            for file in ("plc.json", "plc.jsonl", "daemon.log", "edge.toml"):
                (options.keep / file).write_bytes((folder / file).read_bytes())
        print(f"daemon exit {stopped}, PLC exit {code}, RSS {rss_mb:.0f} MB")
        return compare(options, report, answers, client, rows(daemon.state / "genealogy.db"))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--cameras", type=int, default=3)
    parser.add_argument("--fps", type=float, default=30.0)
    parser.add_argument("--bundle", type=Path, default=PCB)
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--budget-ms", type=float, default=200.0)
    parser.add_argument("--queue", type=int, default=4)
    parser.add_argument("--dialect", default="ascii")
    parser.add_argument("--stall", action="store_true", help="camera 2 stalls for 2 s every 20 s")
    parser.add_argument("--pull", type=int, default=0, help="so many cable pulls")
    parser.add_argument("--garbage", type=float, default=0.0, help="pieces of garbage a second from the PLC")
    parser.add_argument("--recipes", action="store_true", help="another recipe at every tenth part")
    parser.add_argument("--keep", type=Path, help="copy logs here")
    return parser.parse_args()


def cameras(options: argparse.Namespace, folder: Path) -> str:
    """Raw frames from a process each."""
    tables = []
    for i in range(1, options.cameras + 1):
        command = [sys.executable, "-m", "tests.flow.frame_server", "--seed", str(i), "--fps", str(options.fps)]
        command += ["--defect-rate", "0.1"]
        if options.stall and i == 2:
            command += ["--stall-every", "20", "--stall-s", "2"]
        tables.append(
            f'[[camera]]\nid = "cam{i}"\nsource = "pipe"\ncommand = {json.dumps(command)}\nwidth = 640\nheight = 640\n'
            f'format = "gray"\nstall_s = 5.0\nwindow_ms = 60.0\n'
        )
    return "\n".join(tables)


def plc(options: argparse.Namespace, folder: Path) -> str:
    """The tables of the config that a PLC wants."""
    return (
        f'image_every_s = 1.0\n[runtime]\nprefer = "{options.runtime}"\n'
        f'[plc]\nport = "{folder / "plc"}"\ndialect = "{options.dialect}"\nqueue = {options.queue}\n'
    )


def recipes(folder: Path, options: argparse.Namespace) -> str:
    """The bundle's recipe with takt and budget, or three of them; the line of [paths] that names it."""
    text = (options.bundle / "recipe.toml").read_text().splitlines()
    body = "\n".join(line for line in text if not line.startswith("name"))
    body = f"takt_time_ms = {1000 / options.rate}\nanswer_ms = {options.budget_ms}\n{body}\n"
    if not options.recipes:
        (folder / "recipe.toml").write_text(body)
        return f'recipe = "{folder / "recipe.toml"}"'
    (folder / "recipes").mkdir()
    for number in (1, 2, 3):
        (folder / "recipes" / f"{number}.toml").write_text(f'name = "r{number}"\nnumber = {number}\n{body}')
    return f'recipes = "{folder / "recipes"}"'


def simulator(options: argparse.Namespace, folder: Path) -> subprocess.Popen[bytes]:
    """The PLC as its own process; it makes the pty that the daemon opens."""
    command = [
        sys.executable, "-m", "edge.plc.simulate", "--link", str(folder / "plc"), "--dialect", options.dialect,
        "--rate", str(options.rate), "--seconds", str(options.minutes * 60),
        "--report", str(folder / "plc.json"), "--log", str(folder / "plc.jsonl"), "--serial-prefix", "SN",
    ]  # fmt: skip
    if options.recipes:
        command += ["--recipes", "1,2,3", "--recipe-every", "10"]
    if options.pull:
        command += ["--pull", str(options.pull)]
    if options.garbage:
        command += ["--garbage", str(options.garbage)]
    return subprocess.Popen(command, cwd=REPOSITORY)


def rows(path: Path) -> dict[int, dict[str, Any]]:
    """Part number -> its row's columns."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
        db.row_factory = sqlite3.Row
        found = db.execute("SELECT * FROM row WHERE kind = 'part'").fetchall()
    return {row["part"]: dict(row) for row in found}


def compare(
    options: argparse.Namespace, report: dict[str, Any], answers: list[dict[str, Any]], client: Client,
    on_disk: dict[int, dict[str, Any]],
) -> int:  # fmt: skip
    """What the PLC, the broker and the disk say; 0 when they agree."""
    print(json.dumps(report, indent=1))
    health = [h for h in client.json("/health") if h.get("line")]
    ledger, line = health[-1]["ledger"], health[-1]["line"]
    parts = {p["part"]: p for p in client.json("/edge/part")}
    print(f"ledger {ledger}; balanced {health[-1]['balanced']}, in flight {health[-1]['in_flight']}")
    print(f"trigger to answer, in the daemon: {line['answers']}")
    print(f"no frame {line['no_frame']}; link {line['link']}; frame p99.9 {line['frame_p999_ms']} ms")
    print(f"by outcome {dict(Counter(p['outcome'] for p in parts.values()))}")
    ok = [a for a in answers if a["word"] == "OK"]
    without_row = [a for a in ok if on_disk.get(a["result_id"], {}).get("outcome") != "OK"]
    asked = {a["result_id"]: f"r{a['recipe']}" for a in answers if a["result_id"] and options.recipes}
    wrong = [number for number, name in asked.items() if parts[number]["recipe"] != name]
    print(f"OK on the wire {len(ok)}, without its row {len(without_row)}; parts by the wrong recipe {len(wrong)}")
    seqs = sorted(client.durable())
    print(f"messages {len(seqs)}, missing {seqs[-1] - len(seqs)}; rows {len(on_disk)}; parts told {len(parts)}")
    whole = len(seqs) == seqs[-1] and set(parts) == set(on_disk)
    good = health[-1]["balanced"] and whole and not without_row and not wrong and report["unanswered"] == 0
    print("all agree" if good else "THEY DISAGREE")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
