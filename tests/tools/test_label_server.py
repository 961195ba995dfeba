"""The labelling service through real sockets: what it answers, what it refuses, and how it ends."""

from __future__ import annotations

import base64
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import paddle
import pytest

from edge import detect
from edge.errors import PredictorError
from edge.preprocess import InputSpec
from tests.tools.seeing import SeeingPredictor
from tests.tools.tiny import tiny_dataset
from tools import label_server, label_studio
from tools.checkpoint import copy_state, write_checkpoint
from tools.dataset import Dataset, read_dataset
from tools.errors import DataError, ToolError
from tools.evaluate import SETTINGS
from tools.label_server import LabelServer, Service, Worker, decode
from tools.model_info import Purpose
from tools.network import Detector, NetworkConfig

CONFIG = """<View><Image name="pic" value="$image"/>
  <RectangleLabels name="mark" toName="pic"><Label value="Hole"/><Label value="Long" predicted_values="bar, rod"/>
</RectangleLabels></View>"""


@contextmanager
def serving(predictor: Any, spec: InputSpec, images: Path | None = None) -> Iterator[LabelServer]:
    make = partial(detect.Detector, spec=spec, settings=SETTINGS)
    worker = Worker(lambda: nullcontext(predictor), make)
    worker.start()
    worker.wait_ready()
    purpose = Purpose(("hole", "bar"), spec, "tiny")
    server = LabelServer(("127.0.0.1", 0), Service(worker, purpose, np.array([0.3, 0.3]), "tiny 1", images))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        worker.stop()
        thread.join(5)


@pytest.fixture
def tiny(tmp_path: Path) -> Dataset:
    return read_dataset(tiny_dataset(tmp_path / "data"))


@pytest.fixture
def server(tiny: Dataset) -> Iterator[LabelServer]:
    with serving(SeeingPredictor(tiny.spec), tiny.spec, tiny.root / "images") as running:
        yield running


JSON = "application/json"


def ask(server: LabelServer, method: str, path: str, body: Any = None, kind: str = JSON) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=10)
    data = json.dumps(body).encode() if isinstance(body, dict | list) else body
    connection.request(method, path, data, {"Content-Type": kind} if data is not None else {})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, json.loads(text)


def test_health(server: LabelServer) -> None:
    for path in ("/health", "/"):
        status, said = ask(server, "GET", path)
        assert status == 200 and said["status"] == "UP" and said["classes"] == ["hole", "bar"]


@pytest.mark.parametrize("way", ["bytes", "base64", "data URI"])
def test_boxes_of_an_image(server: LabelServer, tiny: Dataset, way: str) -> None:
    sample = tiny.samples[0]
    data = sample.image.read_bytes()
    text = base64.b64encode(data).decode()
    bodies = {"bytes": data, "base64": {"image": text}, "data URI": {"image": f"data:image/png;base64,{text}"}}
    status, said = ask(server, "POST", "/predict", bodies[way], "image/png" if way == "bytes" else JSON)
    assert status == 200 and (said["width"], said["height"]) == (96, 96)
    assert [box["class_name"] for box in said["boxes"]] == [tiny.classes[k] for k in sample.class_id]
    np.testing.assert_allclose(said["boxes"][0]["xyxy"], sample.xyxy[0], atol=2)


def test_boxes_under_the_review_threshold_are_not_shown(tiny: Dataset) -> None:
    with serving(SeeingPredictor(tiny.spec, logits=[-1.0]), tiny.spec) as server:  # confidence 0.27
        assert ask(server, "POST", "/predict", tiny.samples[0].image.read_bytes(), "image/png")[1]["boxes"] == []


def test_label_studio_asks_for_tasks(server: LabelServer, tiny: Dataset) -> None:
    status, said = ask(server, "POST", "/setup", {"project": "1.2", "schema": CONFIG, "hostname": "http://x"})
    assert status == 200 and said == {"model_version": "tiny 1", "without_label": []}
    uri = "data:image/png;base64," + base64.b64encode(tiny.samples[1].image.read_bytes()).decode()
    tasks = [
        {"id": 7, "data": {"image": "/data/local-files/?d=A/0.png"}},
        {"id": 8, "data": {"image": uri}},
        {"id": 9, "data": {"image": "A/2.png"}},
    ]
    message = {"tasks": tasks, "label_config": CONFIG, "project": "1.2", "params": {"login": None, "context": None}}
    status, said = ask(server, "POST", "/predict", message)
    assert status == 200 and len(said["results"]) == 3
    for sample, result in zip(tiny.samples, said["results"], strict=False):
        assert result["model_version"] == "tiny 1" and result["score"] == min(r["score"] for r in result["result"])
        assert sorted(r["value"]["rectanglelabels"][0] for r in result["result"]) == sorted(
            {"hole": "Hole", "bar": "Long"}[tiny.classes[k]] for k in sample.class_id
        )
    region = said["results"][0]["result"][0]
    assert (region["from_name"], region["to_name"], region["type"]) == ("mark", "pic", "rectanglelabels")
    assert (region["original_width"], region["original_height"]) == (96, 96)
    v = region["value"]
    box = [v["x"], v["y"], v["x"] + v["width"], v["y"] + v["height"]]
    np.testing.assert_allclose(np.array(box) * 96 / 100, tiny.samples[0].xyxy[0], atol=2)


def test_news_are_acknowledged(server: LabelServer) -> None:
    assert ask(server, "POST", "/webhook", {"action": "ANNOTATION_CREATED"})[0] == 200


TASK = {"id": 3, "data": {"image": "A/0.png"}}


@pytest.mark.parametrize(
    ("method", "path", "body", "kind", "status", "said"),
    [
        ("GET", "/nothing", None, "", 404, "no such thing"),
        ("GET", "/predict", None, "", 405, "GET /predict"),
        ("POST", "/health", {}, JSON, 405, "POST /health"),
        ("POST", "/predict", b"{", JSON, 400, "is not JSON"),
        ("POST", "/predict", b"[" * 100_000, JSON, 400, "is not JSON"),
        ("POST", "/predict", [1], JSON, 400, "not a JSON object"),
        ("POST", "/predict", {"x": 1}, JSON, 400, "expected an image"),
        ("POST", "/predict", {"image": "?!"}, JSON, 422, "is not base64"),
        ("POST", "/predict", b"nothing", "image/png", 422, "not a picture"),
        ("POST", "/predict", {"tasks": 3, "label_config": CONFIG}, JSON, 400, "expected a list"),
        ("POST", "/predict", {"tasks": [TASK]}, JSON, 400, "label_config"),
        ("POST", "/predict", {"tasks": [TASK], "label_config": "<View/>"}, JSON, 422, "no RectangleLabels"),
        ("POST", "/predict", {"tasks": [TASK] * 51, "label_config": CONFIG}, JSON, 413, "at most 50"),
        ("POST", "/setup", {"schema": "<View"}, JSON, 422, "is not XML"),
    ],
)
def test_what_cannot_be_answered_says_why(
    server: LabelServer, method: str, path: str, body: Any, kind: str, status: int, said: str
) -> None:
    got, answer = ask(server, method, path, body, kind)
    assert got == status and said in answer["error"]
    assert ask(server, "GET", "/health")[0] == 200


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("/data/local-files/?d=../dataset.json", "no file below the served folder"),
        ("../../dataset.json", "no file below the served folder"),
        ("/etc/passwd", "no file below the served folder"),
        ("http://10.0.0.1/a.png", "fetches nothing"),
        ("file:///etc/passwd", "fetches nothing"),
        ("A/0.json", "no file below"),
        ("", "no image under data.image"),
        ("data:image/png,abc", "has to be base64"),
    ],
)
def test_a_task_gets_at_nothing_but_the_served_images(server: LabelServer, where: str, said: str) -> None:
    message = {"tasks": [{"id": 3, "data": {"image": where}}], "label_config": CONFIG}
    status, answer = ask(server, "POST", "/predict", message)
    assert status == 422 and said in answer["error"] and "task 3" in answer["error"]


def test_without_a_folder_no_file_is_read(tiny: Dataset) -> None:
    with serving(SeeingPredictor(tiny.spec), tiny.spec) as server:
        status, answer = ask(server, "POST", "/predict", {"tasks": [TASK], "label_config": CONFIG})
    assert status == 422 and "start this server with --images" in answer["error"]


def raw(server: LabelServer, request: bytes) -> bytes:
    with socket.create_connection(server.server_address[:2], timeout=10) as connection:
        connection.sendall(request)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"", b"411"),
        (b"Content-Length: -5\r\n", b"411"),
        (b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", b"411"),
        (b"Content-Length: 99999999999\r\n", b"413"),
    ],
)
def test_a_body_of_no_or_too_great_length_is_refused_unread(server: LabelServer, headers: bytes, status: bytes) -> None:
    answer = raw(server, b"POST /predict HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 " + status) and b'"error"' in answer


def test_silence_is_cut_off(server: LabelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_server.Handler, "timeout", 0.3)
    began = time.monotonic()
    answer = raw(server, b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
    assert time.monotonic() - began < 5 and answer == b""


def test_too_many_connections_are_turned_away_and_places_come_back(server: LabelServer) -> None:
    idle = [socket.create_connection(server.server_address[:2], timeout=10) for _ in range(label_server.CONNECTIONS)]
    deadline = time.monotonic() + 5
    while server._slots._value and time.monotonic() < deadline:
        time.sleep(0.01)
    assert raw(server, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n") == b""
    for connection in idle:
        connection.close()
    while server._slots._value < label_server.CONNECTIONS and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ask(server, "GET", "/health")[0] == 200


class Slow:
    """Answers when it is let; remembers the threads that called it."""

    def __init__(self, inner: Any):
        self.inner, self.go, self.threads = inner, threading.Event(), set()

    def run(self, tensor: np.ndarray) -> list[np.ndarray]:
        self.threads.add(threading.current_thread().name)
        self.go.wait(20)
        return list(self.inner.run(tensor))


def test_requests_take_turns_in_one_thread_and_the_queue_is_limited(
    tiny: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_server, "WAITING", 3)
    slow, data = Slow(SeeingPredictor(tiny.spec)), tiny.samples[0].image.read_bytes()
    with serving(slow, tiny.spec) as server:
        answers: list[int] = []
        threads = [
            threading.Thread(target=lambda: answers.append(ask(server, "POST", "/predict", data, "image/png")[0]))
            for _ in range(9)
        ]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 10
        while answers.count(503) < 5 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert ask(server, "GET", "/health")[0] == 200  # not held up by the model
        slow.go.set()
        for thread in threads:
            thread.join(10)
    assert sorted(answers) == [200] * 4 + [503] * 5 and slow.threads == {"predictor"}


def test_a_model_that_takes_too_long(tiny: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_server, "PREDICT_S", 0.3)
    slow = Slow(SeeingPredictor(tiny.spec))
    with serving(slow, tiny.spec) as server:
        status, answer = ask(server, "POST", "/predict", tiny.samples[0].image.read_bytes(), "image/png")
        slow.go.set()
    assert status == 504 and "no answer from the model within" in answer["error"]


class Broken:
    def __init__(self, error: Exception):
        self.error = error

    def run(self, tensor: np.ndarray) -> list[np.ndarray]:
        raise self.error


@pytest.mark.parametrize("error", [PredictorError("out of memory"), ZeroDivisionError("bug")])
def test_a_failing_model_is_told_and_the_service_goes_on(tiny: Dataset, error: Exception) -> None:
    with serving(Broken(error), tiny.spec) as server:
        status, answer = ask(server, "POST", "/predict", tiny.samples[0].image.read_bytes(), "image/png")
        assert status == 500 and str(error) in answer["error"]
        assert ask(server, "GET", "/health")[0] == 200


def test_a_model_that_does_not_open_is_the_starters_problem() -> None:
    def fail() -> Any:
        raise ToolError("m.nb: missing")

    worker = Worker(fail, lambda predictor: None)
    worker.start()
    with pytest.raises(ToolError, match=r"m\.nb: missing"):
        worker.wait_ready()


def test_a_giant_picture_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_server, "LARGEST_IMAGE", 99)
    with pytest.raises(DataError, match="10x10 pixels, at most 99"):
        decode(cv2.imencode(".png", np.zeros((10, 10), np.uint8))[1].tobytes(), 1)
    damaged = bytearray(cv2.imencode(".png", np.zeros((9, 9), np.uint8))[1].tobytes())
    with pytest.raises(DataError, match="content is damaged"):
        decode(bytes(damaged[:45]), 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('<!DOCTYPE v [<!ENTITY a "aaaa">]><View>&a;</View>', "declares entities"),
        ("<View>" + " " * 300_000 + "</View>", "too long"),
        ('<View><RectangleLabels name="r" toName="gone"/></View>', "no RectangleLabels"),
    ],
)
def test_a_labelling_config_that_is_not_taken(text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        label_studio.read_config(text, ("hole",))


def test_classes_without_a_label_are_left_out() -> None:
    only = CONFIG.replace('<Label value="Hole"/>', "")
    labelling = label_studio.read_config(only, ("hole", "bar"))
    found = detect.Detections(np.ones((2, 4), np.float32), np.array([0.9, 0.8], np.float32), np.array([0, 1]))
    shown = label_studio.prediction(found, (10, 10), ("hole", "bar"), labelling, "v")
    assert [r["value"]["rectanglelabels"] for r in shown["result"]] == [["Long"]] and shown["score"] == 0.8


SMALL = NetworkConfig(classes=2, stem=8, width8=8, width16=8, width32=8, depth8=1, depth16=1, depth32=1, neck=8)


def test_the_step_serves_until_it_is_told_to_end(tiny: Dataset, tmp_path: Path) -> None:
    paddle.seed(1)
    network = Detector(SMALL)
    network.cls.bias.set_value(paddle.full([2], 0.5))
    write_checkpoint(tmp_path / "last.pdckpt", network, copy_state(network), tiny)
    command = [sys.executable, "-m", "tools", "label_server", "--model", str(tmp_path / "last.pdckpt"), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        found = re.match(r"http://127\.0\.0\.1:(\d+): tiny \w{12}, classes hole, bar", line)
        assert found, line + process.stderr.read()
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=20)
        connection.request("POST", "/predict", tiny.samples[0].image.read_bytes(), {"Content-Type": "image/png"})
        said = json.loads(connection.getresponse().read())
        assert said["boxes"] and said["boxes"][0]["class_name"] in tiny.classes
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0 and "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait(5)


def test_a_port_that_is_taken(tiny: Dataset, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)  # a shell's background job has it ignored
    network = Detector(SMALL)
    write_checkpoint(tmp_path / "last.pdckpt", network, copy_state(network), tiny)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        with pytest.raises(ToolError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            label_server.main(["--model", str(tmp_path / "last.pdckpt"), "--port", port])
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_is_heard_only_while_it_is_waited_for() -> None:
    before = signal.getsignal(signal.SIGINT)
    with label_server.told_to_end() as ended:
        signal.raise_signal(signal.SIGINT)
        assert ended.is_set()
    assert signal.getsignal(signal.SIGINT) is before
