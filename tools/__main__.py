"""`python -m tools STEP`: one readable script a step, each with its own `--help`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file, as paddle.distributed.launch does: find `tools` and `edge` beside it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from edge.errors import EdgeError

# Step: the module that has it, and what it does.
STEPS = {
    "import": ("import_data", "make a dataset folder of COCO, Pascal VOC, labelme, YOLO or DeepPCB annotations"),
    "curate": ("curate", "find broken, tiny, near-duplicate and unlabelled images; sheets to look at"),
    "leave_out": ("leave_out", "make a dataset without one of its classes, to see what becomes of the unknown"),
    "search": ("search", "find the network by .nb latency, size and accuracy"),
    "train": ("train", "train the FP32 detector; stop it at any time, --resume goes on"),
    "partial": ("partial", "train on data sets that each label only some of the classes"),
    "adversarial": ("adversarial", "train on against attacks"),
    "distill": ("distill", "teach a small network by a large one"),
    "prune": ("prune", "take out channels that matter least, then train on"),
    "confidence": ("confidence", "make confidences honest and choose thresholds; writes the recipe"),
    "export": ("export", "write a checkpoint as Paddle model, ONNX and FP32 .nb"),
    "calibration": ("calibration", "choose the images that calibrate INT8"),
    "latency_table": ("latency_table", "measure what each kind of layer costs on this machine"),
    "plan": ("plan", "choose INT8 or FP32 for each layer by a latency table"),
    "quantize": ("quantize", "make INT8 .nb for x86 or ARM; trains on where that loses too much"),
    "passport": ("passport", "prove that all forms of a model agree"),
    "evaluate": ("evaluate", "accuracy, escape and overkill of any form of a model"),
    "robustness": ("robustness", "accuracy under blur, glare, occlusion, noise, JPEG and attacks"),
    "latency": ("latency", "time models against each other"),
    "mine": ("mine", "pick images worth labelling and label them beforehand"),
    "label_server": ("label_server", "serve a model to a labelling tool over HTTP"),
    "gate": ("gate", "train the gate's classifier over several products, test it on each left out"),
    "build": ("build", "all that lies between a checkpoint and a bundle, in one command"),
    "anomaly": ("anomaly", "train the model of the unknown on a frozen detector's features"),
    "unknown": ("unknown", "leave a class of defect out and find it as unknown"),
    "normal_parts": ("normal_parts", "model what good parts look like, for a product with good parts only"),
    "judges": ("judges", "add gate classifier, anomaly model and drift autoencoder to a bundle"),
    "drift_search": ("drift_search", "find the drift autoencoder's shape by what it tells apart and its .nb latency"),
    "drift": ("drift", "train the drift autoencoder, and measure the baselines of all drift signals"),
    "drift_compare": ("drift_compare", "what the drift autoencoders of several products see, side by side"),
    "arl": ("arl", "how long a drift monitor stays calm and how soon it speaks, by simulation"),
    "good_parts": ("good_parts", "pack a bundle for a product of which only good parts are known"),
    "restate": ("restate", "state hardware, calibration and terms of a bundle that stands"),
    "make_bundle": ("make_bundle", "put models, recipe, golden samples, passport and card together"),
    "publish": ("publish", "sign bundles and publish them for devices: keys, repository, expiry, revocation"),
}


def main(arguments: list[str]) -> int:
    """Dispatch to a step; returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, STEPS))
        print("usage: python -m tools STEP [arguments]\n\nsteps:")
        print("\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in STEPS.items()))
        return 0 if arguments else 2
    step = arguments[0].replace("-", "_")
    if step not in STEPS:
        print(f"unknown step {arguments[0]!r}; the steps are {', '.join(STEPS)}", file=sys.stderr)
        return 2
    try:
        importlib.import_module(f"tools.{STEPS[step][0]}").main(arguments[1:])
    except EdgeError as error:
        print(f"{step}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
