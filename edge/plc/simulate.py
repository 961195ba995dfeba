"""Plays the line's PLC, for commissioning without a line and for tests: `python -m edge.plc.simulate --help`."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge.config import Plc
from edge.errors import EdgeError, PlcError
from edge.plc.cable import PortCable, PtyCable
from edge.plc.players import make_player
from edge.plc.simulator import Plan, Simulator

__all__ = ["Plan", "Simulator", "in_words", "is_good", "main"]


def in_words(report: dict[str, Any]) -> str:
    """The report for a reader."""
    answers, times = report["answered"], report["answer_ms"]
    lines = [
        f"{report['sent']} triggers sent: {sum(answers.values())} answered {answers or ''}, "
        f"{sum(report['refused'].values())} refused by name {report['refused'] or ''}, {report['unanswered']} open"
    ]
    if times["count"]:
        lines.append(
            f"trigger to answer: p50 {times['p50']} ms, p99 {times['p99']} ms, p99.9 {times['p99.9']} ms, "
            f"max {times['max']} ms ({times['count']} undisturbed triggers)"
        )
    if report["pulls"]:
        longest = report["recovery_s"].get("max", "-")
        lines.append(f"{report['pulls']} cable pulls: the station was back at most {longest} s after the cable")
    if report["errors"] or report["garbage_sent"]:
        lines.append(f"{report['garbage_sent']} pieces of garbage sent; errors told: {report['errors'] or 'none'}")
    lines.append(
        f"{report['repeated_triggers']} triggers repeated, {report['duplicates']} answers heard twice, result ids "
        f"{'increase' if report['result_ids_increasing'] else 'DO NOT INCREASE'}"
    )
    lines += [f"CONTRADICTION: {text}" for text in report["contradictions"]]
    if not report["sent"]:
        lines.append(
            "NO trigger was sent: the station never showed Ready. Does it run, with plc.port set to this port?"
        )
    elif is_good(report):
        lines.append("every trigger was answered")
    else:
        lines.append("NOT every trigger was answered as it has to be")
    return "\n".join(lines)


def is_good(report: dict[str, Any]) -> bool:
    """Whether there were triggers, and every one was answered, once, and in order."""
    clean = not report["unanswered"] and not report["contradictions"] and report["result_ids_increasing"]
    return bool(report["sent"] and clean)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 when every trigger was answered, 1 when not, 2 when it cannot run."""
    args = _parser().parse_args(arguments)
    try:
        return _play(args)
    except EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _play(args: argparse.Namespace) -> int:
    settings = Plc(
        port=args.port or str(args.link or "pty"),
        dialect=args.dialect,
        baud=args.baud,
        parity=args.parity,
        stop_bits=args.stop_bits,
        check=not args.no_check,
        unit=args.unit,
    )
    cable = PortCable(settings) if args.port else PtyCable(args.link)
    cable.plug()
    if isinstance(cable, PtyCable):
        print(f"the PLC is on {args.link or cable.path}; set plc.port to it", flush=True)
    elif not cable.is_in:
        raise PlcError(cable.problem)
    log = open(args.log, "w", encoding="utf-8", buffering=1) if args.log else None  # noqa: SIM115 - closed below
    simulator = Simulator(_plan(args), cable, make_player(settings), log, _Wire(args.fire).fire)
    before = {number: signal.signal(number, lambda *_: simulator.stop()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        report = simulator.run(lambda text: print(text, flush=True))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        cable.pull()
        if log is not None:
            log.close()
    print(in_words(report))
    if args.report:
        Path(args.report).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0 if is_good(report) else 1


class _Wire:
    """The output that fires cameras: a byte to the datagram socket of each."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def fire(self) -> None:
        """Now. A camera that is not there, or does not take it, misses this one, as a real one would."""
        for path in self._paths:
            with contextlib.suppress(OSError):
                self._socket.sendto(b"!", path)


def _plan(args: argparse.Namespace) -> Plan:
    return Plan(
        rate=args.rate,
        triggers=args.triggers,
        seconds=args.seconds,
        recipes=tuple(args.recipes),
        recipe_every=args.recipe_every,
        recipe_by=args.recipe_by,
        serial_prefix=args.serial_prefix,
        encoder_per_s=args.encoder,
        pulls=args.pull,
        garbage_per_s=args.garbage,
        heartbeat_s=args.heartbeat,
        wait_ready=args.wait_ready,
        first_number=args.first_number,
        seed=args.seed,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m edge.plc.simulate", description="Plays the PLC of a line.")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--link", type=Path, help="name of the port for the station: a link to a pty")
    where.add_argument("--port", help="a real serial port, instead of a pty")
    add = parser.add_argument
    add("--dialect", choices=("ascii", "modbus_server", "modbus_client"), default="ascii", help="as in the site config")
    add("--baud", type=int, default=115_200)
    add("--parity", choices=("none", "even", "odd"), default="none")
    add("--stop-bits", type=int, choices=(1, 2), default=1)
    add("--unit", type=int, default=1, help="Modbus address, as in the site config")
    add("--no-check", action="store_true", help="as plc.check = false in the site config")
    add("--rate", type=_above_zero, default=5.0, help="triggers a second")
    add("--seconds", type=_above_zero, help="end after so long")
    add("--triggers", type=int, help="end after so many")
    add("--recipes", type=_numbers, default=(), metavar="1,2", help="recipe numbers to go through")
    add("--recipe-every", type=int, default=10, metavar="N", help="the next recipe after so many parts")
    add("--recipe-by", choices=("trigger", "request"), default="trigger")
    add("--serial-prefix", default="P")
    add("--encoder", type=_above_zero, metavar="COUNTS", help="an encoder with so many counts a second")
    add("--heartbeat", type=_above_zero, default=1.0, metavar="SECONDS")
    add("--wait-ready", action="store_true", help="hold parts back while the station is not Ready")
    add("--pull", type=int, default=0, metavar="N", help="pull the cable so many times, at random")
    add("--garbage", type=float, default=0.0, metavar="RATE", help="pieces of garbage a second")
    add("--fire", action="append", default=[], metavar="SOCKET",
        help="a datagram socket that gets a byte with each trigger, for a camera that is fired")  # fmt: skip
    add("--first-number", type=int, default=1, help="of the triggers")
    add("--seed", type=int, default=1, help="of all that is random")
    add("--report", help="write the report to this file, as JSON")
    add("--log", help="write a JSON line for each trigger to this file")
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _above_zero(text: str) -> float:
    value = float(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


if __name__ == "__main__":
    sys.exit(main())
