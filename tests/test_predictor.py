"""One contract for every runtime, on the shipped bundle; what cannot be loaded is said, never a crash."""

import numpy as np
import pytest

from edge.bundle import manifest
from edge.config import Runtime
from edge.detect import decode
from edge.errors import PredictorError
from edge.predictor import canary, installed_runtimes, load
from edge.preprocess import preprocess
from edge.serving import machine, open_product
from tests.boards import drawn_boards
from tests.flow.rig import PCB


def runnable():
    installed = installed_runtimes()
    return [a for a in manifest.read(PCB).artifacts if a.runtime in installed and a.arch in (machine(), "any")]


@pytest.fixture(params=runnable(), ids=lambda a: a.file)
def artifact(request):
    return request.param


@pytest.fixture(scope="module")
def tensor():
    return preprocess(drawn_boards(1)[0], open_product(PCB, Runtime()).spec)[0]


def test_outputs_are_logits_and_distances_of_every_level(artifact, tensor):
    read = manifest.read(PCB)
    outputs = load(artifact.runtime, PCB / artifact.file).run(tensor)
    for level, stride in enumerate(read.strides):
        side = (read.input.height // stride, read.input.width // stride)
        assert outputs[2 * level].shape == (1, len(read.classes), *side)
        assert outputs[2 * level + 1].shape == (1, 4, *side)


def test_the_same_input_gives_the_same_output(artifact, tensor):
    predictor = load(artifact.runtime, PCB / artifact.file)
    first = [output.copy() for output in predictor.run(tensor)]
    predictor.run(np.zeros_like(tensor))
    assert all(np.array_equal(a, b) for a, b in zip(first, predictor.run(tensor), strict=True))


def test_every_runtime_finds_the_same_on_a_board(artifact, tensor):
    strides = manifest.read(PCB).strides
    reference = load("onnxruntime", PCB / "detector.onnx").run(tensor)
    outputs = load(artifact.runtime, PCB / artifact.file).run(tensor)
    scores = [1 / (1 + np.exp(-o[0].max(axis=(1, 2)))) for o in (reference[0], outputs[0])]
    assert np.abs(scores[0] - scores[1]).max() < 0.15, "the best score of each class"
    assert abs(len(decode(reference, strides, 0.5)[1]) - len(decode(outputs, strides, 0.5)[1])) <= 12


def test_the_canary_passes_what_runs(artifact, tensor):
    canary(artifact.runtime, PCB / artifact.file, tensor.shape)


@pytest.mark.parametrize("runtime", ["paddlelite", "onnxruntime"])
@pytest.mark.parametrize("content", [b"", b"\0" * 5000, b"\xff" * 5000])
def test_the_canary_survives_a_damaged_model(runtime, content, tmp_path):
    if runtime not in installed_runtimes():
        pytest.skip(f"{runtime} is not installed here")
    model = tmp_path / "broken.nb"
    model.write_bytes(content)
    with pytest.raises(PredictorError, match=r"broken\.nb cannot be run"):
        canary(runtime, model, (1, 1, 640, 640))


def test_a_missing_model_is_named(tmp_path):
    for runtime in installed_runtimes():
        with pytest.raises(PredictorError, match=r"none\.nb is missing"):
            load(runtime, tmp_path / "none.nb")


def test_an_unknown_runtime_is_named(tmp_path):
    with pytest.raises(PredictorError, match="tensorflow"):
        load("tensorflow", tmp_path)
