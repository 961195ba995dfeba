"""A station under its PLC for minutes: every trigger answered, the ledger balanced, and how long answers take.

    python -m tests.flow.soak_plc [--minutes 10] [--rate 20] [--cameras 3] [--bundle models/pcb] [--budget-ms 200]
                                  [--stall] [--pull 30] [--garbage 5] [--recipes] [--dialect ascii] [--keep DIR]

Runs the daemon with cameras that write raw 640x640 frames, a real mosquitto, and the simulated PLC on a pty. Prints
what the PLC, the broker and the disk say, and exits with 1 where they disagree or a trigger stays unanswered.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.brokers import Broker, wait_until
from tests.flow.plc_rig import Plc, Station, disagreements, make_daemon
from tests.flow.rig import PCB, Client

KEPT = ("plc.json", "plc.jsonl", "daemon.log", "edge.toml")


def main() -> int:
    """Run the soak; 0 when all agree."""
    options = arguments()
    station = Station(
        cameras=options.cameras, fps=options.fps, bundle=options.bundle, runtime=options.runtime,
        budget_ms=options.budget_ms, takt_ms=1000 / options.rate, queue=options.queue, dialect=options.dialect,
        recipes=3 if options.recipes else 0, stalling=options.stall, fired=options.fired,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="edge-plc-") as name, Broker(Path(name) / "broker") as broker:
        folder, client = Path(name), Client(broker.port)
        daemon = make_daemon(folder, broker.port, station)
        extra = ["--recipes", "1,2,3", "--recipe-every", "10"] if options.recipes else []
        plc = Plc(folder, station, extra)
        plc.start(rate=options.rate, seconds=options.minutes * 60, pull=options.pull, garbage=options.garbage)
        daemon.start()
        code = plc.wait(options.minutes * 60 + 120)
        rss_mb = daemon.rss_mb()
        stopped = daemon.stop()
        wait_until(lambda: client.json("/edge/state")[-1]["state"] == "offline", 20, "the last word")
        client.close()
        for file in KEPT if options.keep else ():
            options.keep.mkdir(parents=True, exist_ok=True)
            (options.keep / file).write_bytes((folder / file).read_bytes())
        print(f"daemon exit {stopped}, PLC exit {code}, RSS {rss_mb:.0f} MB")
        return tell(plc, client, daemon.state)


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
    parser.add_argument("--fired", action="store_true", help="the PLC fires the cameras")
    parser.add_argument("--pull", type=int, default=0, help="so many cable pulls")
    parser.add_argument("--garbage", type=float, default=0.0, help="pieces of garbage a second from the PLC")
    parser.add_argument("--recipes", action="store_true", help="another recipe at every tenth part")
    parser.add_argument("--keep", type=Path, help="copy logs here")
    return parser.parse_args()


def tell(plc: Plc, client: Client, state: Path) -> int:
    """Print the figures; 0 when wire, broker and disk agree and nothing stayed unanswered."""
    report, health = plc.report(), client.json("/health")[-1]
    line, parts = health["line"], client.json("/edge/part")
    print(f"sent {report['sent']}, answered {report['answered']}, refused {report['refused']}, "
          f"unanswered {report['unanswered']}, contradictions {len(report['contradictions'])}")  # fmt: skip
    print(f"as the PLC sees it, ms: {report['answer_ms']}; disturbed: {report['disturbed_answer_ms']}")
    print(f"in the daemon, ms: {line['answers']}")
    print(f"ledger {health['ledger']}, in flight {health['in_flight']}, balanced {health['balanced']}")
    print(f"outcomes {dict(Counter(p['outcome'] for p in parts))}; no frame {line['no_frame']}")
    print(f"reasons {Counter(p['reasons'][0]['code'] for p in parts if p['reasons']).most_common(8)}")
    print(f"link {line['link']}")
    print(f"pulls {report['pulls']}, back after s: {report['recovery_s']}; garbage sent {report['garbage_sent']}")
    print(f"reckoned with: frame {line['frame_p999_ms']} ms, settle {line['settle_p999_ms']} ms")
    print("stages", [h["stages"] for h in client.json("/health") if h["stages"]][-1])
    print(f"evidence {health['evidence']}; recorder {health['recorder']}; genealogy {health['genealogy']}")
    problems = disagreements(plc.answers(), client, state)
    verified = subprocess.run(
        [sys.executable, "-m", "edge", "audit", "verify", "--state", str(state), "--head", health["genealogy"]["head"]],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(verified.stdout.strip())
    for problem in problems:
        print(f"DISAGREE: {problem}")
    good = not problems and verified.returncode == 0 and report["unanswered"] == 0
    print("all agree" if good else "NOT GOOD")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
