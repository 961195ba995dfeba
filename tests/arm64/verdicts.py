"""Golden images through the whole pipeline: in the guest by ONNX Runtime, on the host by each runtime it has."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge.boxes import iou_matrix
from tests.arm64.guest import Guest
from tests.arm64.report import Report, expect

MODELS = "/mnt/models"
REPLAY_TIMEOUT_S = 1800.0
SAME_CONFIDENCE = 0.0021  # of one network on two processors, with what rounding to 1e-4 adds
SAME_BOX_PX = 0.51
IOU = 0.5
ON_HOST = (("onnxruntime", "fp32"), ("paddlelite", "int8"))  # runtimes and precisions of an x86 box
# Prints the SHA-256 of the tensor that this machine makes of each golden image, by the bundle's input contract.
TENSORS = """
import hashlib, json, sys
from pathlib import Path
from edge.bundle import manifest as manifests
from edge.capture.folder import read_image
from edge.preprocess import preprocess
from edge.serving import input_spec
folder = Path(sys.argv[1])
manifest = manifests.read(folder)
spec, golden = input_spec(manifest), manifests.read_golden(folder, manifest)
print(json.dumps({s.file: hashlib.sha256(preprocess(read_image(folder / s.file), spec)[0].tobytes()).hexdigest()
                  for s in golden.samples}))
"""

Lines = Mapping[str, Mapping[str, Any]]  # of a replay, by file


@dataclass(frozen=True)
class Difference:
    """How far two replays of the same images are apart.

    Attributes:
        verdicts: files whose verdict or cause differs, with both.
        confidence, box_px: the largest difference of two boxes of one class that lie on each other.
        matched: so many pairs.
        alone: the greatest confidence of a box that the other side lacks, and how many there are.
    """

    verdicts: tuple[str, ...]
    confidence: float
    box_px: float
    matched: int
    alone: float
    alone_count: int

    def __str__(self) -> str:
        return (
            f"{self.matched} boxes on each other, apart by at most {self.confidence:.4f} in confidence and "
            f"{self.box_px:.1f} px; {self.alone_count} without a like, the surest {self.alone:.4f}"
        )


def compare(one: Lines, other: Lines, least: float) -> Difference:
    """Two replays, over the boxes that at least one side is sure of.

    Args:
        least: confidence from which on a box counts.

    Raises:
        StepError: they are not of the same images.
    """
    expect(list(one) == list(other), f"not the same images: {', '.join(one)} and {', '.join(other)}")
    verdicts, confidence, box_px, alone = [], [0.0], [0.0], [0.0]
    matched = 0
    for file, a in one.items():
        b = other[file]
        said = [(line["verdict"], line["cause"]) for line in (a, b)]
        if said[0] != said[1]:
            verdicts.append(f"{file}: {said[0]} and {said[1]}")
        pairs, left = _pair(a["detections"], b["detections"], least)
        matched += len(pairs)
        confidence += [abs(x["confidence"] - y["confidence"]) for x, y in pairs]
        box_px += [abs(p - q) for x, y in pairs for p, q in zip(x["xyxy"], y["xyxy"], strict=True)]
        alone += [box["confidence"] for box in left]
    return Difference(tuple(verdicts), max(confidence), max(box_px), matched, max(alone), len(alone) - 1)


Boxes = Sequence[dict[str, Any]]


def _pair(one: Boxes, other: Boxes, least: float) -> tuple[list[tuple[dict[str, Any], dict[str, Any]]], Boxes]:
    """Boxes of both sides that lie on each other, the nearest first, and those at least so sure without a like."""
    if not one or not other:
        return [], [box for box in (*one, *other) if box["confidence"] >= least]
    iou = iou_matrix(*(np.array([box["xyxy"] for box in boxes], np.float32) for boxes in (one, other)))
    iou[np.array([[a["class_name"] != b["class_name"] for b in other] for a in one])] = 0
    pairs, rest_a, rest_b = [], set(range(len(one))), set(range(len(other)))
    for flat in np.argsort(-iou, axis=None):
        i, j = (int(k) for k in np.unravel_index(flat, iou.shape))
        if iou[i, j] < IOU:
            break
        if i in rest_a and j in rest_b:
            rest_a.discard(i)
            rest_b.discard(j)
            if max(one[i]["confidence"], other[j]["confidence"]) >= least:
                pairs.append((one[i], other[j]))
    left = [one[i] for i in sorted(rest_a)] + [other[j] for j in sorted(rest_b)]
    return pairs, [box for box in left if box["confidence"] >= least]


def check(guest: Guest, source: Path, product: str, work: Path, report: Report) -> None:
    """The guest's verdicts on a product's golden images are the reference's, and those of each runtime on x86."""
    expected = _expected(source / "models" / product)
    here = _in_guest(guest, product, work)
    files = [Path(sample["file"]).name for sample in expected["samples"]]
    verdicts = [here[file]["verdict"] for file in files]
    expect(
        verdicts == [s["verdict"] for s in expected["samples"]], f"{product}: {dict(zip(files, verdicts, strict=True))}"
    )
    report.show(f"{product}: aarch64, ONNX Runtime: {' '.join(verdicts)}, as the bundle expects")
    _check_tensors(guest, product, expected, report)
    for runtime, precision in ON_HOST:
        there = _on_host(source, product, runtime, precision, work)
        apart = compare(here, there, expected["least_confidence"])
        name = f"{product}: x86 {runtime} {precision}"
        expect(not apart.verdicts, f"{name} gives other verdicts: {'; '.join(apart.verdicts)}")
        if runtime == "onnxruntime":
            near = apart.confidence <= SAME_CONFIDENCE and apart.box_px <= SAME_BOX_PX and not apart.alone_count
            expect(near, f"{name}: the same network differs too far: {apart}")
        figures = {"confidence": apart.confidence, "box_px": apart.box_px, "alone": apart.alone}
        report.show(f"{name}: the same {len(files)} verdicts; {apart}", **{f"{product} {runtime} {precision}": figures})


def _expected(bundle: Path) -> Any:
    return json.loads((bundle / "golden/expected.json").read_text())


def _check_tensors(guest: Guest, product: str, expected: Any, report: Report) -> None:
    done = guest.must("/opt/edge/current/bin/python", "-c", TENSORS, f"{MODELS}/{product}")
    tensors = json.loads(done.out)
    other = [s["file"] for s in expected["samples"] if tensors[s["file"]] != s["tensor_sha256"]]
    expect(not other, f"{product}: another tensor is made of {', '.join(other)}")
    report.show(f"{product}: the tensors of all {len(tensors)} images are the same to the last bit")


def _in_guest(guest: Guest, product: str, work: Path) -> Lines:
    done = guest.must(
        "/usr/local/bin/edge", "replay", f"{MODELS}/{product}/golden", "--bundle", f"{MODELS}/{product}",
        "--jsonl", "-", timeout_s=REPLAY_TIMEOUT_S, log=work / f"replay-{product}-aarch64.log",
    )  # fmt: skip
    return _lines(done.out)


def _on_host(source: Path, product: str, runtime: str, precision: str, work: Path) -> Lines:
    bundle = source / "models" / product
    command = [
        sys.executable, "-m", "edge", "replay", str(bundle / "golden"), "--bundle", str(bundle), "--jsonl", "-",
        "--runtime", runtime, "--precision", precision,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=REPLAY_TIMEOUT_S)
    expect(done.returncode == 0, f"`{' '.join(command)}` ended with {done.returncode}: {done.stderr[-1000:]}")
    (work / f"replay-{product}-x86_64-{runtime}-{precision}.log").write_text(done.stdout + done.stderr)
    return _lines(done.stdout)


def _lines(text: str) -> Lines:
    return {line["file"]: line for line in map(json.loads, text.splitlines())}
