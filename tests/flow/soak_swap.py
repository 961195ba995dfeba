"""Bundles change under a PLC: every trigger answered, the ledger balanced, and the longest gap between two answers.

    python -m tests.flow.soak_swap [--rate 20] [--minutes 2] [--swaps 4] [--bundle models/pcb] [--runtime onnxruntime]

Runs the daemon with its cameras, a real mosquitto, and the simulated PLC on a pty, and installs one successor after
another while triggers come. Exits with 1 where wire, broker and disk disagree or a trigger stays unanswered.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from edge.bundle import manifest as manifests
from edge.bundle import slots
from tests.brokers import Broker, wait_until
from tests.bundle.tiny_bundle import install
from tests.flow.plc_rig import Plc, Station, make_daemon
from tests.flow.rig import PCB, Client
from tests.flow.soak_plc import tell
from tests.successors import successor

CALM = "\n[drift]\nuse = false\n"  # the frames are not those of the bundle's baseline


def main() -> int:
    """Run it; 0 when all agree and every swap was made."""
    options = arguments()
    trial = f"[trial]\nshadow_parts = {options.shadow_parts}\nshadow_minutes = 0.2\nparts = 50\nminutes = 0.05\n"
    station = Station(
        cameras=options.cameras, bundle=options.bundle, runtime=options.runtime, budget_ms=options.budget_ms,
        takt_ms=1000 / options.rate, queue=options.queue, more=trial,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="edge-swap-") as name, Broker(Path(name) / "broker") as broker:
        folder, client = Path(name), Client(broker.port)
        daemon = make_daemon(folder, broker.port, station)
        text = daemon.config.read_text().replace(f'bundle = "{options.bundle}"\n', "")
        daemon.config.write_text(text)
        first = manifests.read_unverified(options.bundle).version
        install(successor(options.bundle, folder / "first", first, more=CALM), daemon.state)
        plc = Plc(folder, station)
        plc.start(rate=options.rate, seconds=options.minutes * 60)
        daemon.start()
        daemon.wait_log("first verdict")
        for swap in range(1, options.swaps + 1):
            slot = slots.put(successor(options.bundle, folder / f"v{swap}", first + swap, more=CALM), daemon.state)
            slots.stage(daemon.state, slot, signed=False, origin="local")
            wait_until(lambda slot=slot: committed(client, slot), 120, f"{slot.name} to stay; {daemon.log()[-3000:]}")
        code = plc.wait(options.minutes * 60 + 120)
        print(f"PLC exit {code}, daemon exit {daemon.stop()}")
        wait_until(lambda: client.json("/edge/state")[-1]["state"] == "offline", 20, "the last word")
        client.close()
        tell_swaps(daemon.log(), client, plc)
        return tell(plc, client, daemon.state)


def committed(client: Client, slot: Path) -> bool:
    """Whether the slot was told to stay."""
    version = int(slot.name.split("-")[1])
    return any(
        told["active"]["version"] == version and told["stage"] == "committed" and told["last"]["outcome"] == "committed"
        for told in client.json("/edge/bundle")
        if told["last"] is not None
    )


def tell_swaps(log: str, client: Client, plc: Plc) -> None:
    """The longest time between two answers around each swap, and over the whole run."""
    for line in log.splitlines():
        if "in charge" in line or "saw" in line:
            print(line)
    shown = [told for told in client.json("/edge/bundle") if told["shadow"]]
    print("shadow", [told["shadow"] for told in shown][-1:])
    parts = client.json("/edge/part")
    swaps = [i for i in range(1, len(parts)) if parts[i]["bundle_digest"] != parts[i - 1]["bundle_digest"]]
    gaps = [parts[i]["mono_ns"] - parts[i - 1]["mono_ns"] for i in range(1, len(parts))]
    print(f"{len(parts)} parts, {len(swaps)} swaps; gap between two settled parts at a swap, ms: "
          f"{[round(gaps[i - 1] / 1e6, 1) for i in swaps]}; longest of all {max(gaps) / 1e6:.1f}")  # fmt: skip
    around = [parts[max(0, i - 60) : i + 60] for i in swaps]
    latest = [max(p["latency_ms"] for p in some) for some in around]
    print(f"trigger to verdict at most, ms, in the 60 parts before and after each swap: {latest}")
    print("outcomes around the swaps", [tally(some) for some in around])


def tally(parts: list[dict[str, Any]]) -> dict[str, int]:
    """How parts ended."""
    return {outcome: sum(p["outcome"] == outcome for p in parts) for outcome in sorted({p["outcome"] for p in parts})}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--cameras", type=int, default=1)
    parser.add_argument("--swaps", type=int, default=4)
    parser.add_argument("--shadow-parts", type=int, default=30)
    parser.add_argument("--bundle", type=Path, default=PCB)
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--budget-ms", type=float, default=300.0)
    parser.add_argument("--queue", type=int, default=4)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
