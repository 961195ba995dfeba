"""Compile and time Paddle Lite models in a child process that never imports Paddle.

Only the run itself is timed, without copying inputs and outputs, and all models take turns, so that the machine's mood
is shared by what is going to be compared.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from edge.boxes import Float
from tools.errors import ToolError
from tools.lite_compile import compile_model
from tools.machine import cpu_fields

TIMEOUT_S = 600.0
STEERING = ("OMP_", "MKL_", "KMP_", "GOMP_")  # environment variables that change how fast matrix products are
QUANTILE = 10.0  # percent; other work on the machine only ever adds time


def measured_on() -> dict[str, Any]:
    """What times depend on besides the model: processor, architecture, and variables that steer matrix products."""
    return {
        "cpu": cpu_fields().get("model name", platform.processor() or platform.machine()),
        "architecture": platform.machine(),
        "environment": {key: value for key, value in sorted(os.environ.items()) if key.startswith(STEERING)},
    }


@dataclass(frozen=True)
class Job:
    """A Paddle model folder's files, the `.nb` to make of them, and the shapes of its inputs."""

    program: Path
    weights: Path
    nb: Path
    inputs: tuple[tuple[int, ...], ...]


def time_jobs(jobs: Sequence[Job], places: str, turns: int, rounds: int) -> list[float]:
    """Compile each job for `places` ("x86" or "arm", as this machine is) and time it.

    Args:
        turns: how often each model has its turn, after one to warm up. rounds: runs a turn.

    Returns:
        Milliseconds of a run of each job, the tenth percentile over all runs.

    Raises:
        ToolError: the child died or took too long; names the jobs.
    """
    said = jobs[0].nb.with_suffix(".log")
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=_serve, args=(theirs, list(jobs), said, places, turns, rounds), daemon=True)
    child.start()
    theirs.close()
    try:
        if not ours.poll(TIMEOUT_S):
            raise ToolError(f"timing {_names(jobs)} took over {TIMEOUT_S:.0f} s; try fewer rounds")
        kind, value = ours.recv()
    except (EOFError, OSError) as error:
        child.join(5)
        last = "\n".join(said.read_text(errors="replace").strip().splitlines()[-3:]) if said.is_file() else ""
        raise ToolError(f"Paddle Lite died ({child.exitcode}) on one of {_names(jobs)}: {last}") from error
    finally:
        ours.close()
        child.kill()
        child.join()
    if kind == "error":
        raise ToolError(f"Paddle Lite cannot time {_names(jobs)}: {value}")
    return list(value)


def _names(jobs: Sequence[Job]) -> str:
    return ", ".join(str(job.nb) for job in jobs)


def _serve(pipe: Connection, jobs: list[Job], said: Path, places: str, turns: int, rounds: int) -> None:
    try:
        with said.open("w", encoding="utf-8") as log:  # what the compiler says, which comes from C++
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        predictors = [_prepare(job, places) for job in jobs]
        times: list[list[float]] = [[] for _ in jobs]
        for turn in range(turns + 1):
            for mine, predictor in zip(times, predictors, strict=True):
                took = [_timed_ms(predictor) for _ in range(rounds)]
                mine += took if turn else []
        pipe.send(("times", [float(np.percentile(mine, QUANTILE)) for mine in times]))
    except Exception as error:  # whatever went wrong is the parent's to report
        pipe.send(("error", f"{type(error).__name__}: {error}"))


def _prepare(job: Job, places: str) -> Any:
    from paddlelite.lite import MobileConfig, create_paddle_predictor

    compile_model(str(job.program), str(job.weights), str(job.nb.with_suffix("")), places)
    config = MobileConfig()
    config.set_model_from_file(str(job.nb))
    predictor = create_paddle_predictor(config)
    rng = np.random.default_rng(0)
    for place, shape in enumerate(job.inputs):
        noise: Float = rng.random(shape).astype(np.float32)
        predictor.get_input(place).from_numpy(noise)
    return predictor


def _timed_ms(predictor: Any) -> float:
    start = time.perf_counter()
    predictor.run()
    return (time.perf_counter() - start) * 1e3
