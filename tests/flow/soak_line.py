"""The main job on a folder of real images, for minutes: every frame a verdict, none lost, memory flat.

    python -m tests.flow.soak_line --images DIR [--minutes 10] [--fps 10] [--keep DIR]

Runs the daemon on a folder source that loops, into a real mosquitto, with annotated JPEGs; prints what arrived and
exits with 1 when anything is missing. `--keep` writes the annotated images that came over MQTT.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.brokers import Broker, wait_until
from tests.flow.rig import PCB, Client, Daemon

SAMPLE_S = 10.0


def main() -> int:
    """Run the soak; 0 when nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", required=True, help="a folder or a quoted glob")
    parser.add_argument("--bundle", type=Path, default=PCB)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--fps", type=float, default=10.0)
    parser.add_argument("--keep", type=Path, help="write the annotated images here")
    options = parser.parse_args()
    camera = (
        f'[[camera]]\nid = "cam1"\nsource = "folder"\npath = "{options.images}"\nfps = {options.fps}\nloop = true\n'
    )
    with tempfile.TemporaryDirectory(prefix="edge-soak-") as name, Broker(Path(name) / "broker") as broker:
        client = Client(broker.port)
        daemon = Daemon(Path(name), broker.port, camera, bundle=options.bundle)
        began = time.monotonic()
        daemon.start()
        daemon.wait_log("first verdict")
        print(f"first verdict after {time.monotonic() - began:.2f} s", flush=True)
        rss_mb = watch(daemon, options.minutes * 60)
        code = daemon.stop()
        wait_until(lambda: client.json("/edge/state")[-1]["state"] == "offline", 10, "the last word")
        client.close()
        if options.keep:
            keep(client, options.keep)
        return report(client, rss_mb, code, daemon.log())


def watch(daemon: Daemon, seconds: float) -> list[float]:
    """Resident memory in MB every ten seconds."""
    rss_mb, end = [], time.monotonic() + seconds
    assert daemon.process is not None
    while time.monotonic() < end and daemon.process.poll() is None:
        status = Path(f"/proc/{daemon.process.pid}/status").read_text()
        rss_mb.append(next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1e3)
        time.sleep(min(SAMPLE_S, max(0.0, end - time.monotonic())))
    return rss_mb


def keep(client: Client, folder: Path) -> None:
    """Write the annotated images as they came."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, payload in enumerate(client.raw("/cam1/image")):
        (folder / f"{i:05}.jpg").write_bytes(payload)


def report(client: Client, rss_mb: list[float], code: int, log: str) -> int:
    """Print the figures; 0 when every frame is a verdict that arrived."""
    results, health = client.json("/cam1/result"), client.json("/health")[-1]
    ledger, seqs = health["ledger"], sorted(client.durable())
    parts = sorted({r["part"] for r in results})
    frames = sorted(r["frame"] for r in results)
    print(f"exit code {code}; ledger {ledger}; balanced {health['balanced']}")
    print(f"results {len(results)}: {dict(Counter(r['verdict'] for r in results))}")
    print(f"seq 1..{seqs[-1]}, missing {seqs[-1] - len(seqs)}; parts 1..{parts[-1]}, missing {parts[-1] - len(parts)}")
    print(f"frames 1..{frames[-1]}, without a verdict {frames[-1] - len(frames)}")
    ms = sorted(r["latency_ms"] for r in results)
    print(f"latency ms p50 {ms[len(ms) // 2]:.1f}, p99 {ms[int(len(ms) * 0.99)]:.1f}, max {ms[-1]:.1f}")
    print(f"RSS MB after 10 s {rss_mb[min(1, len(rss_mb) - 1)]:.1f}, end {rss_mb[-1]:.1f}, highest {max(rss_mb):.1f}")
    print(f"images {len(client.raw('/cam1/image'))}; warnings in the log {log.count('WARNING')}")
    lost = sum(ledger["losses"].values()) - ledger["losses"]["shutdown"]
    whole = len(seqs) == seqs[-1] and len(parts) == parts[-1] == sum(ledger["verdicts"].values())
    return 0 if code == 0 and health["balanced"] and whole and lost == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
