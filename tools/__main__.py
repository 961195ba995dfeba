"""`python -m tools STEP`: one readable script a step, each with its own `--help`."""

from __future__ import annotations

import importlib
import sys

from edge.errors import EdgeError

STEPS = {
    "train": "train the FP32 detector; stop it at any time, --resume goes on",
    "calibration": "choose the images that calibrate INT8",
    "export": "write a checkpoint as Paddle inference model and ONNX",
    "quantize": "post-training or quantization-aware INT8, for x86 or ARM",
    "evaluate": "accuracy of any form of the detector on the validation split",
    "latency": "time models against each other",
    "make_bundle": "put models, recipe, card and manifest together",
}


def main(arguments: list[str]) -> int:
    """Dispatch to a step; returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, STEPS))
        print("usage: python -m tools STEP [arguments]\n\nsteps:")
        print("\n".join(f"  {name:<{width}}  {text}" for name, text in STEPS.items()))
        return 0 if arguments else 2
    step = arguments[0].replace("-", "_")
    if step not in STEPS:
        print(f"unknown step {arguments[0]!r}; the steps are {', '.join(STEPS)}", file=sys.stderr)
        return 2
    try:
        importlib.import_module(f"tools.{step}").main(arguments[1:])
    except EdgeError as error:
        print(f"{step}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
