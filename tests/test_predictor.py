"""One contract for every runtime, on the shipped bundle; what cannot be loaded is said, never a crash."""

import sys
import threading
import types
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge import decide, predictor
from edge.bundle import manifest
from edge.config import Runtime
from edge.detect import decode
from edge.errors import PredictorError
from edge.loading import machine
from edge.predictor import CPU, canary, check_providers, installed_runtimes, load
from edge.preprocess import preprocess
from edge.serving import open_product
from tests.boards import drawn_boards
from tests.flow.rig import PCB


def runnable():
    installed = installed_runtimes()
    return [a for a in manifest.read(PCB).artifacts if a.runtime in installed and a.arch in (machine(), "any")]


@pytest.fixture(params=runnable(), ids=lambda a: a.file)
def artifact(request):
    return request.param


@pytest.fixture
def loaded(artifact, tensor):
    return load(artifact.runtime, PCB / artifact.file, shape=tensor.shape)


@pytest.fixture(scope="module")
def tensor():
    return preprocess(drawn_boards(1)[0], open_product(PCB, Runtime()).spec)[0]


def same(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_outputs_are_logits_and_distances_of_every_level(loaded, tensor):
    read = manifest.read(PCB)
    outputs = loaded.run(tensor)
    for level, stride in enumerate(read.strides):
        side = (read.input.height // stride, read.input.width // stride)
        assert outputs[2 * level].shape == (1, len(read.classes), *side)
        assert outputs[2 * level + 1].shape == (1, 4, *side)
    assert all(output.dtype == np.float32 for output in outputs)


def test_the_same_input_gives_the_same_output(loaded, tensor):
    first = [output.copy() for output in loaded.run(tensor)]
    loaded.run(np.zeros_like(tensor))
    assert same(first, loaded.run(tensor))


def test_outputs_belong_to_the_caller(artifact, tensor):
    mine = load(artifact.runtime, PCB / artifact.file)
    first = mine.run(tensor)
    kept = [output.copy() for output in first]
    mine.run(np.zeros_like(tensor))
    assert same(kept, first), "a later run does not write into them"
    del mine
    assert same(kept, first), "nor do they go with the predictor"
    for output in first:
        output += 1  # and they may be written to


def test_the_input_is_left_as_it_was(loaded, tensor):
    before = tensor.copy()
    loaded.run(tensor)
    assert np.array_equal(before, tensor)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda t: t[:, :, ::2, ::2], "another size would be taken, and cells would mean other places"),
        (lambda t: t[:, :, :333, :333], "a size that strides do not divide aborts Paddle Lite's process"),
        (lambda t: np.repeat(t, 3, axis=1), "other channels are read as garbage"),
        (lambda t: np.repeat(t, 2, axis=0), "two images at once"),
        (lambda t: t[0, 0], "two dimensions abort Paddle Lite's process"),
        (lambda t: t.astype(np.float64), "double is read as float, in silence"),
        (lambda t: (t * 255).astype(np.uint8), "so are bytes"),
    ],
)
def test_an_input_of_another_shape_or_type_is_refused(loaded, tensor, spoil, why):
    before = loaded.run(tensor)
    with pytest.raises(PredictorError, match=r"takes float32 of shape \(1, 1, 640, 640\), this input is"):
        loaded.run(spoil(tensor))
    assert same(before, loaded.run(tensor)), f"{why}; the predictor goes on after it"


def test_without_a_stated_shape_the_first_input_sets_it(artifact, tensor):
    mine = load(artifact.runtime, PCB / artifact.file)
    mine.run(tensor)
    with pytest.raises(PredictorError, match="float32 of shape"):
        mine.run(tensor[:, :, ::2, ::2].copy())


def test_a_slice_with_gaps_in_memory_is_read_as_numpy_reads_it(loaded, tensor):
    wide = np.repeat(tensor, 2, axis=3)
    assert same(loaded.run(tensor), loaded.run(wide[..., ::2]))


def test_numbers_that_are_none_do_not_stay(loaded, tensor):
    before = loaded.run(tensor)
    loaded.run(np.full_like(tensor, np.nan))
    assert same(before, loaded.run(tensor))


def test_it_can_live_in_any_thread_and_use_two_cores(artifact, tensor):
    want = load(artifact.runtime, PCB / artifact.file).run(tensor)
    got = []
    thread = threading.Thread(target=lambda: got.extend(load(artifact.runtime, PCB / artifact.file, 2).run(tensor)))
    thread.start()
    thread.join(60)
    assert all(np.abs(a - b).max() < 1e-3 for a, b in zip(want, got, strict=True))


def test_only_onnx_runtime_has_providers(artifact, loaded):
    assert loaded.providers == ((CPU,) if artifact.runtime == "onnxruntime" else ())


def test_every_runtime_finds_the_same_on_a_board(loaded, tensor):
    strides = manifest.read(PCB).strides
    reference = load("onnxruntime", PCB / "detector.onnx").run(tensor)
    outputs = loaded.run(tensor)
    scores = [1 / (1 + np.exp(-o[0].max(axis=(1, 2)))) for o in (reference[0], outputs[0])]
    assert np.abs(scores[0] - scores[1]).max() < 0.15, "the best score of each class"
    assert abs(len(decode(reference, strides, 0.5)[1]) - len(decode(outputs, strides, 0.5)[1])) <= 12


def golden_images():
    """The bundle's golden samples; boards of the line for a bundle without them."""
    read = manifest.read(PCB)
    if read.golden is None:
        return drawn_boards(8, seed=5)
    flag = cv2.IMREAD_GRAYSCALE if read.input.channels == 1 else cv2.IMREAD_COLOR
    return [cv2.imread(str(PCB / sample.file), flag) for sample in manifest.read_golden(PCB, read).samples]


def test_both_runtimes_give_the_same_verdicts_on_the_golden_set():
    verdicts = {}
    for runtime in installed_runtimes():
        product = open_product(PCB, Runtime(prefer=runtime))
        assert product.artifact.runtime == runtime
        found = [product.detector.detect(image) for image in golden_images()]
        verdicts[runtime] = [decide.decide(d, product.recipe.detect, product.classes).kind.value for d in found]
    assert len(verdicts) == 2, "this machine has both"
    assert verdicts["paddlelite"] == verdicts["onnxruntime"]
    assert {"OK", "NG"} <= set(verdicts["onnxruntime"]), "a set of one verdict would show nothing"


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


def test_the_canary_survives_a_model_cut_short(artifact, tmp_path):
    model = tmp_path / artifact.file
    content = (PCB / artifact.file).read_bytes()
    model.write_bytes(content[: len(content) // 2])
    with pytest.raises(PredictorError, match=r"cannot be run by .*export the bundle again"):
        canary(artifact.runtime, model, (1, 1, 640, 640))


def test_a_missing_model_is_named(tmp_path):
    for runtime in installed_runtimes():
        with pytest.raises(PredictorError, match=r"none\.nb is missing"):
            load(runtime, tmp_path / "none.nb")


def test_an_unknown_runtime_is_named(tmp_path):
    with pytest.raises(PredictorError, match="tensorflow"):
        load("tensorflow", tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("CUDAExecutionProvider", r"names CUDAExecutionProvider, .* it has .*CPUExecutionProvider; name another"),
        ("CPUExecutionProvidr", r"did you mean CPUExecutionProvider\?"),
        ("CpuExecutionProvider", r"did you mean CPUExecutionProvider\?"),
    ],
)
def test_a_provider_that_this_build_lacks_is_named_with_what_it_has(name, words):
    with pytest.raises(PredictorError, match=words):
        load("onnxruntime", PCB / "detector.onnx", providers=[name, CPU])
    with pytest.raises(PredictorError, match=words):
        open_product(PCB, Runtime(prefer="onnxruntime", providers=[name]))


def test_the_product_says_which_providers_are_in_use():
    product = open_product(PCB, Runtime(prefer="onnxruntime"))
    assert product.runtime == f"onnxruntime {installed_runtimes()['onnxruntime']} fp32 any on {CPU}"
    assert " on " not in open_product(PCB, Runtime(prefer="paddlelite")).runtime


class FakeOnnxRuntime(types.ModuleType):
    """A build with a GPU whose TensorRT does not start: as ONNX Runtime does, it goes on without, in silence."""

    def __init__(self):
        super().__init__("onnxruntime")
        self.asked = []
        self.SessionOptions = types.SimpleNamespace

    def get_available_providers(self):
        return ["TensorrtExecutionProvider", "CUDAExecutionProvider", CPU]

    def InferenceSession(self, model, options, providers):
        self.asked = providers
        source = types.SimpleNamespace(name="image", shape=[1, 1, 640, 640])
        return types.SimpleNamespace(
            get_inputs=lambda: [source],
            get_providers=lambda: ["CUDAExecutionProvider", CPU],
            run=lambda names, feed: [np.zeros((1, channels, 80, 80), np.float32) for channels in (6, 4, 64)],
        )


def test_a_provider_that_does_not_start_is_said_and_tensorrt_keeps_what_it_built(monkeypatch, tmp_path):
    fake = FakeOnnxRuntime()
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    tried = []
    monkeypatch.setattr("edge.loading.canary", lambda *given: tried.append(given))
    wanted = ["TensorrtExecutionProvider", "CUDAExecutionProvider", CPU]
    alone = tmp_path / "recipe.toml"
    alone.write_text('[gate]\nclassifier = "never"\n[anomaly]\nuse = false\n[drift]\nuse = false\n')

    def opened(providers):
        runtime = Runtime(prefer="onnxruntime", providers=providers)
        return open_product(PCB, runtime, recipe_file=alone, trial_marks=tmp_path / "trials")

    product = opened(wanted)
    assert product.runtime.endswith(f"on CUDAExecutionProvider, {CPU}; TensorrtExecutionProvider did not start")
    assert [name for name, _ in fake.asked] == wanted
    assert dict(fake.asked)["TensorrtExecutionProvider"]["trt_engine_cache_path"] == str(tmp_path / "trials")
    assert dict(fake.asked)["CUDAExecutionProvider"] == {}
    assert [given[3] for given in tried] == [wanted], "the trial runs on the same providers"
    opened([CPU])
    opened([CPU])
    assert len(tried) == 2, "other providers are another trial, the same ones are not"


def test_the_canary_waits_for_tensorrt_to_compile(monkeypatch):
    limits = []

    def run(command, timeout, **_):
        limits.append(timeout)
        return types.SimpleNamespace(returncode=0)

    monkeypatch.setattr(predictor.subprocess, "run", run)
    for providers in ((CPU,), ("TensorrtExecutionProvider", CPU)):
        canary("onnxruntime", Path("x.onnx"), (1, 1, 8, 8), providers)
    assert limits == [predictor.CANARY_TIMEOUT_S, predictor.BUILD_TIMEOUT_S]


def test_a_gpu_build_of_onnx_runtime_goes_by_another_package_name(monkeypatch):
    def version(name):
        if name != "onnxruntime-gpu":
            raise predictor.metadata.PackageNotFoundError(name)
        return "1.23.0"

    monkeypatch.setattr(predictor.metadata, "version", version)
    assert installed_runtimes() == {"onnxruntime": "1.23.0"}


def test_providers_of_this_machine_pass():
    check_providers([CPU])
