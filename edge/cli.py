"""The `edge` command. What is wrong is one message on stderr, never a traceback.

Exit codes: 0 done, 1 nothing could be judged, 2 what was asked for cannot be done, 70 a fault of the program;
`edge doctor`: 0 nothing is wrong, 1 warnings, 2 errors."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from edge import __version__, cli_bundle, cli_doctor, incident
from edge.errors import DEBUG_VARIABLE, EdgeError, UsageError

if TYPE_CHECKING:  # commands import what they need when they run, so that each starts at once
    from edge.replay import Line

OK, FAILED, USAGE, INTERNAL = 0, 1, 2, 70
STATE = Path("/var/lib/edge")


def entry() -> NoReturn:
    """The console script: run one command and leave, whatever threads are still stuck in a driver.

    A thread inside a capture library that returns while the interpreter is being torn down aborts the process, and
    a stop that went well would look like a crash to systemd.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names need not be text
    code = main()
    if threading.active_count() > 1:
        logging.shutdown()
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except EdgeError as error:
        print(f"edge: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone; keep the interpreter from complaining about it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:  # what the commands themselves read and write: a full disk behind a redirection
        print(f"edge: {error.filename or 'the output'} cannot be used: {error.strerror or error}", file=sys.stderr)
        return USAGE
    except Exception as error:  # a fault of ours: still one sentence for the operator
        if os.environ.get(DEBUG_VARIABLE):
            raise
        print(
            f"edge: internal error, {type(error).__name__}: {error}; this is a fault of the program, "
            f"please report it with what {DEBUG_VARIABLE}=1 prints",
            file=sys.stderr,
        )
        return INTERNAL


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("edge", description="Inspects the parts of a production line on this box.")
    parser.add_argument("--version", action="version", version=f"edge {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_run(commands)
    _add_check_config(commands)
    _add_replay(commands)
    _add_calibrate(commands)
    cli_bundle.add(commands)
    cli_doctor.add(commands)
    _add_audit(commands)
    _add_incident(commands)
    _add_watch(commands)
    _add_demo(commands)
    _add_bench(commands)
    _add_schema(commands)
    return parser


Commands = argparse._SubParsersAction  # argparse names its own type only so


def _add_run(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("run", help="run the daemon until SIGTERM or Ctrl-C")
    parser.add_argument("--config", type=Path, required=True, help="the site config, a TOML file")
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from edge.stop import StopFlag

    stop = StopFlag()
    stop.install()  # first of all, so that a stop during the start is not lost
    from edge import config, daemon

    return daemon.main(lambda: config.load(options.config), stop, options.config)


def _add_check_config(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("check-config", help="check a site config and print what is in force")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", type=Path, help="the site config, a TOML file")
    what.add_argument("--sample", action="store_true", help="print a commented sample to start from")
    parser.set_defaults(command=_check_config)


def _check_config(options: argparse.Namespace) -> int:
    from edge import config

    print(config.sample() if options.sample else config.effective(config.load(options.config)), end="")
    return OK


def _add_product_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", type=Path, required=True, help="the model bundle, a folder")
    parser.add_argument("--runtime", choices=("auto", "paddlelite", "onnxruntime"), default="auto")
    parser.add_argument("--precision", choices=("auto", "int8", "fp32"), default="auto")


def _add_replay(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("replay", help="offline verdicts over a folder of images")
    parser.add_argument("folder", type=Path, metavar="DIR", help="images, also in subfolders")
    _add_product_options(parser)
    parser.add_argument("--recipe", type=Path, help="a recipe instead of the bundle's own")
    parser.add_argument("--jsonl", type=Path, metavar="OUT", help="write one JSON line an image; - is stdout")
    parser.add_argument("--annotate", type=Path, metavar="DIR", help="write the images with boxes and verdict")
    parser.add_argument("--order", choices=("name", "time"), default="name",
                        help="of the images: natural order of their names, or time of their last change")  # fmt: skip
    drift = parser.add_argument_group("drift", "is the stream still what the model was made for")
    drift.add_argument("--drift", action="store_true", help="watch the images for drift, in their order, and report")
    drift.add_argument("--learn", type=int, metavar="N",
                       help="learn the baseline from the first N good images instead of taking the bundle's; "
                            "a bundle without one learns from 500")  # fmt: skip
    drift.add_argument("--arl0", type=float, metavar="N", default=100_000.0,
                       help="with a learned baseline: images between false alarms on average")  # fmt: skip
    drift.add_argument("--chart", type=Path, metavar="OUT", help="draw the signals, a PNG; wants matplotlib")
    drift.add_argument("--report", type=Path, metavar="OUT", help="write the report as JSON")
    parser.set_defaults(command=_replay)


def _replay(options: argparse.Namespace) -> int:
    from edge import config, drift_replay, replay, serving

    if not options.drift and (options.chart or options.report or options.learn is not None):
        raise UsageError("--learn, --chart and --report are about drift: give --drift too")
    product = serving.open_product(
        options.bundle,
        config.Runtime(prefer=options.runtime, precision=options.precision),
        recipe_file=options.recipe,
        min_confidence=serving.EVERYTHING,
    )
    to_stdout = options.jsonl is not None and str(options.jsonl) == "-"
    people = sys.stderr if to_stdout else sys.stdout
    try:
        sink = sys.stdout if to_stdout else options.jsonl.open("w") if options.jsonl else None
    except OSError as error:
        raise UsageError(f"the output file {options.jsonl} cannot be written: {error.strerror}") from error
    summary = replay.Summary()
    drift = drift_replay.DriftReplay(product, options.learn, options.arl0) if options.drift else None
    each = {"each": drift.look} if drift else {}
    try:
        for line in replay.replay(
            options.folder, product, summary, sink, options.annotate, order=options.order, **each
        ):
            _print_line(line, people)
    finally:
        if sink is not None and not to_stdout:
            sink.close()
    print(f"{product.manifest.product} {product.manifest.version} on {product.runtime}", file=people)
    print(replay.table(summary), file=people)
    if drift is not None:
        print("\n".join(drift.told()), file=people)
        drift.write(options.report, options.chart)
    return OK if summary.judged else FAILED


def _print_line(line: Line, people: TextIO) -> None:
    why = line.error or "; ".join(reason.text for reason in line.reasons[:3])
    more = f"; and {len(line.reasons) - 3} more" if len(line.reasons) > 3 else ""
    print(f"{line.verdict or line.loss or '':<13} {line.file}  {why}{more}", file=people)


def _add_calibrate(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("calibrate", help="fit thresholds on this line")
    what = parser.add_subparsers(title="what", required=True, metavar="WHAT")
    gate = what.add_parser("gate", help="propose the gate's thresholds from good frames")
    gate.add_argument("folder", type=Path, metavar="DIR", help="images of good frames, best of a whole shift")
    gate.add_argument("--roi", type=float, nargs=4, default=(0.0, 0.0, 1.0, 1.0), metavar=("X", "Y", "W", "H"),
                      help="region of interest as shares of the frame")  # fmt: skip
    gate.add_argument("--refuse", type=float, default=0.005, help="share of good frames that may be refused")
    gate.add_argument("--bundle", type=Path, help="fit the limits of this bundle's classifier too")
    gate.set_defaults(command=_calibrate_gate)
    anomaly = what.add_parser("anomaly", help="propose the limit of the anomaly score from good frames")
    anomaly.add_argument("folder", type=Path, metavar="DIR", help="images of good frames, best of a whole shift")
    anomaly.add_argument("--bundle", type=Path, required=True, help="the bundle whose models score them")
    anomaly.add_argument("--overkill", type=float, default=0.005, help="share of good frames that may reach the limit")
    anomaly.set_defaults(command=_calibrate_anomaly)


def _calibrate_gate(options: argparse.Namespace) -> int:
    from edge import calibrate, recipe

    x, y, width, height = options.roi
    if not (0 <= x < 1 and 0 <= y < 1 and width > 0 and height > 0 and max(x + width, y + height) <= 1 + 1e-6):
        raise UsageError(f"--roi {x} {y} {width} {height} does not lie within the frame: use shares from 0 to 1")
    if not 0 <= options.refuse < 0.5:
        raise UsageError(f"--refuse {options.refuse} is not a share in [0, 0.5)")
    proposal = calibrate.calibrate_gate(options.folder, (x, y, width, height), options.refuse, options.bundle)
    good = proposal.good
    for sentence in good.unusable:
        print(f"left out: {sentence}", file=sys.stderr)
    sharpness, n = sorted(m.sharpness for m in good.measures), len(good.measures)
    print(f"# from {n} good frames; sharpness {sharpness[0]:.0f} to {sharpness[-1]:.0f}")
    print(f"# refuses {proposal.refused} of them ({100 * proposal.refused / n:.1f} %)")
    if good.probabilities:
        print(f"# the classifier looks at {proposal.looked_at} of them ({100 * proposal.looked_at / n:.1f} %)")
    print(recipe.dump_gate(proposal.recipe), end="")
    return OK


def _calibrate_anomaly(options: argparse.Namespace) -> int:
    from edge import calibrate

    if not 0 < options.overkill <= 0.2:
        raise UsageError(f"--overkill {options.overkill} is not a share in (0, 0.2]")
    proposal = calibrate.calibrate_anomaly(options.folder, options.bundle, options.overkill)
    for sentence in proposal.unusable:
        print(f"left out: {sentence}", file=sys.stderr)
    n, scores = len(proposal.scores), sorted(proposal.scores)
    print(f"# from {n} good frames; scores {scores[0]:.4g} to {scores[-1]:.4g}")
    print(f"# the bundle's own limit {proposal.bundle_limit:.4g} is reached by {proposal.reached} of them")
    if proposal.limit.extrapolated:
        print(f"# {n} frames do not show {options.overkill:g} of all: the limit is what their worst fifth suggests")
    print(f"[anomaly]\nreview = {proposal.limit.threshold:.5g}")
    return OK


def _add_audit(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("audit", help="prove the genealogy of the parts, and copy it out")
    what = parser.add_subparsers(title="what", required=True, metavar="WHAT")
    verify = what.add_parser("verify", help="prove the chain of rows, or name its first break")
    verify.add_argument("--state", type=Path, default=STATE, help="the daemon's state folder")
    verify.add_argument("--head", metavar="HASH", help="a head that was published before: it must be in the chain")
    verify.set_defaults(command=_audit_verify)
    export = what.add_parser("export", help="write parts to a CSV or Parquet file, such as on a USB stick")
    export.add_argument("--out", type=Path, required=True, metavar="FILE", help="ends in .csv or .parquet")
    export.add_argument("--from", dest="begin", metavar="DATE", help="such as 2026-11-27 or 2026-11-27T06:00, UTC")
    export.add_argument("--to", dest="end", metavar="DATE", help="a day is meant with its end")
    export.add_argument("--serial", help="only parts with it")
    export.add_argument("--raw", action="store_true", help="every row as it is in the chain, not one line a part")
    export.add_argument("--state", type=Path, default=STATE, help="the daemon's state folder")
    export.set_defaults(command=_audit_export)


def _audit_verify(options: argparse.Namespace) -> int:
    from edge import audit

    return audit.verify(options.state, options.head)


def _audit_export(options: argparse.Namespace) -> int:
    from edge import audit

    return audit.export(options.state, options.out, options.begin, options.end, options.serial, options.raw)


def _add_incident(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("incident", help="pack the last minutes of a station, and judge them again anywhere")
    incident.add_arguments(parser)


def _add_watch(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("watch", help="show a line in the terminal, over MQTT")
    parser.add_argument("--config", type=Path, help="take the broker from a site config")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=1883)
    parser.add_argument("--prefix", default="edge")
    parser.add_argument("--username")
    parser.add_argument("--password-file", help="a file that holds the password")
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--ca-file", help="certificate authorities instead of the system's")
    for level in ("site", "line", "node"):
        parser.add_argument(f"--{level}", help=f"only this {level}")
    parser.add_argument("--once", action="store_true", help="print what stands now and end")
    parser.add_argument("--seconds", type=float, help="end after so long")
    parser.set_defaults(command=_watch)


def _watch(options: argparse.Namespace) -> int:
    from edge import config, settings
    from edge.view import terminal

    if options.seconds is not None and options.seconds <= 0:
        raise UsageError(f"--seconds {options.seconds} is not a time: use more than 0")
    if options.config:
        mqtt = config.load(options.config).mqtt
    else:
        names = ("host", "port", "prefix", "username", "password_file", "tls", "ca_file")
        given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
        mqtt = settings.check(given, config.Mqtt, "the command line")
    return terminal.watch(
        mqtt, site=options.site, line=options.line, node=options.node, once=options.once, seconds=options.seconds
    )


def _add_demo(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("demo", help="a simulated line with a broker and a view of it, all on this machine")
    parser.add_argument("--bundle", type=Path, default=Path("models/pcb"), help="the model bundle, a folder")
    parser.add_argument("--line", action="store_true",
                        help="a simulated PLC triggers the parts over a pty; its account comes at the end")  # fmt: skip
    parser.add_argument("--seconds", type=float, help="end after so long")
    parser.add_argument("--seed", type=int, default=1, help="of the simulated line")
    parser.add_argument("--headless", action="store_true", help="plain lines instead of the live picture")
    parser.add_argument("--state", type=Path, help="keep the daemon's state here instead of in a temporary folder")
    parser.set_defaults(command=_demo)


def _demo(options: argparse.Namespace) -> int:
    from edge.view import demo

    return demo.demo(
        options.seconds, options.bundle, options.seed, options.headless, line=options.line, state=options.state
    )


def _add_bench(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("bench", help="measure this machine: stages, path against bare model, runtimes")
    parser.add_argument("--bundle", type=Path, default=Path("models/pcb"), help="the model bundle, a folder")
    parser.add_argument("--frames", type=int, default=300, help="frames of each measurement")
    parser.add_argument("--images", type=Path, help="images of a folder instead of the simulated line")
    line = parser.add_argument_group("line", "the whole station under a simulated PLC on a pty")
    line.add_argument("--line", action="store_true", help="measure from trigger to answer instead")
    line.add_argument("--rate", type=float, default=5.0, help="triggers a second")
    line.add_argument("--seconds", type=float, default=30.0)
    line.add_argument("--cameras", type=int, default=1)
    line.add_argument("--budget", type=float, metavar="MS", help="trigger to answer at most; without it two takt times")
    line.add_argument("--chart", type=Path, metavar="OUT", help="draw the answer times, a PNG; wants matplotlib")
    parser.set_defaults(command=_bench)


def _bench(options: argparse.Namespace) -> int:
    if options.line:
        return _bench_line(options)
    from edge import bench

    if options.chart:
        raise UsageError("--chart is about answers: give --line too")
    if options.frames < 10:
        raise UsageError(f"--frames {options.frames} is too few for percentiles: use at least 10")
    return bench.bench(options.bundle, options.frames, options.images)


def _bench_line(options: argparse.Namespace) -> int:
    from edge import line_bench

    for name, value in (("rate", options.rate), ("seconds", options.seconds), ("budget", options.budget or 1.0)):
        if not 0 < value <= 86_400:
            raise UsageError(f"--{name} {value:g} is not above 0 and at most 86400")
    if not 1 <= options.cameras <= 16:
        raise UsageError(f"--cameras {options.cameras} is not from 1 to 16")
    wanted = line_bench.LineBench(
        options.bundle, options.rate, options.seconds, options.cameras, options.budget, options.chart
    )
    return line_bench.bench_line(wanted)


def _add_schema(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("schema", help="JSON Schemas of every MQTT payload")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write one file a payload; without it, print all")
    parser.set_defaults(command=_schema)


def _schema(options: argparse.Namespace) -> int:
    from edge import event

    schemas = event.json_schemas()
    if options.out is None:
        print("".join(schema.decode() for schema in schemas.values()), end="")
        return OK
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        for name, schema in schemas.items():
            (options.out / f"{name}.json").write_bytes(schema)
    except OSError as error:
        raise UsageError(f"the schemas cannot be written to {options.out}: {error.strerror}") from error
    return OK


if __name__ == "__main__":
    entry()
