"""Serve a detector to a labelling tool over HTTP: boxes for an image, or predictions for Label Studio's tasks.

    GET  /health     what runs here
    POST /predict    an image's bytes, or {"image": base64}  -> {"boxes": [...]}
                     {"tasks": [...], "label_config": ...}   -> {"results": [...]}, as Label Studio asks and wants
    POST /setup      Label Studio's hello, with the project's labelling config
    POST /webhook    Label Studio's news; nothing is trained here, so it is only acknowledged

Label Studio: start this, then add its address under Settings, Model. There is no password: it listens on this machine
only unless --host says otherwise. Ctrl-C or SIGTERM ends it.
"""

from __future__ import annotations

import argparse
import io
import json
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image as Picture

from edge.detect import Detector, Predictor
from edge.errors import EdgeError
from edge.preprocess import Image
from edge.recipe import DetectRecipe
from edge.records import Detections
from tools import label_studio
from tools.dataset import read_dataset
from tools.errors import DataError, ToolError
from tools.evaluate import choose_recipe, model_hash, opened, settings_of, thresholds_of
from tools.model_info import Purpose, purpose_of

LARGEST_BODY = 32 << 20  # bytes
LARGEST_IMAGE = 64_000_000  # pixels
PICTURES = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM")
MOST_TASKS = 50
CONNECTIONS = 32
WAITING = 16  # images that wait for the model
SOCKET_S = 10.0  # silence on a connection
BODY_S = 60.0  # for the whole of a request's body
PREDICT_S = 60.0  # for one image, waiting included
START_S = 120.0


class Refusal(Exception):
    """A request that cannot be answered: the HTTP status and the reason."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


class Worker(threading.Thread):
    """The one thread that makes and runs the predictor; others leave images and wait for boxes.

    Args:
        open_predictor: gives the predictor as a context that closes it.
        make: the detector around it.
    """

    def __init__(self, open_predictor: Callable[[], AbstractContextManager[Predictor]], make: Callable[..., Detector]):
        super().__init__(name="predictor", daemon=True)
        self._open, self._make = open_predictor, make
        self._jobs: queue.Queue[tuple[Image, Future[Detections]] | None] = queue.Queue(WAITING)
        self._ready: Future[None] = Future()

    def run(self) -> None:
        """See `threading.Thread.run`."""
        try:
            with self._open() as predictor:
                detector = self._make(predictor)
                self._ready.set_result(None)
                while (job := self._jobs.get()) is not None:
                    self._answer(detector, *job)
        except Exception as error:  # whatever keeps the model from opening is the starter's to report
            if self._ready.done():
                raise
            self._ready.set_exception(error)

    @staticmethod
    def _answer(detector: Detector, image: Image, answer: Future[Detections]) -> None:
        if not answer.set_running_or_notify_cancel():
            return  # nobody waits any more
        try:
            answer.set_result(detector.detect(image))
        except Exception as error:  # is the asker's to report
            answer.set_exception(error)

    def wait_ready(self) -> None:
        """Wait until the model is open.

        Raises:
            ToolError: it could not be opened, or not in time.
        """
        try:
            self._ready.result(START_S)
        except FutureTimeout as error:
            raise ToolError(f"the model did not open within {START_S:.0f} s") from error

    def detect(self, image: Image) -> Detections:
        """Boxes on an image, from any thread.

        Raises:
            Refusal: too many wait, it took too long, or the model failed.
        """
        answer: Future[Detections] = Future()
        try:
            self._jobs.put_nowait((image, answer))
        except queue.Full as error:
            raise Refusal(503, f"{WAITING} images wait already: try again later") from error
        try:
            return answer.result(PREDICT_S)
        except FutureTimeout as error:
            answer.cancel()
            raise Refusal(504, f"no answer from the model within {PREDICT_S:.0f} s") from error
        except EdgeError as error:
            raise Refusal(500, str(error)) from error

    def stop(self) -> None:
        """End the thread after the image it is at; what waits is not answered."""
        while True:
            try:
                self._jobs.put_nowait(None)
                break
            except queue.Full:
                self._drop_one()
        self.join(PREDICT_S)

    def _drop_one(self) -> None:
        try:
            job = self._jobs.get_nowait()
        except queue.Empty:
            return
        if job is not None:
            job[1].cancel()


@dataclass(frozen=True)
class Service:
    """What the requests are answered with.

    Attributes:
        least: (classes,) confidence from which a box is shown. images: folder that tasks may name files of.
    """

    worker: Worker
    purpose: Purpose
    least: np.ndarray
    version: str
    images: Path | None = None

    def health(self) -> dict[str, Any]:
        """Answer of GET /health."""
        return {
            "status": "UP",
            "model_class": "Detector",
            "model_version": self.version,
            "classes": list(self.purpose.classes),
        }

    def setup(self, message: dict[str, Any]) -> dict[str, Any]:
        """Answer of POST /setup; refuses a config that this model cannot serve."""
        config = message.get("schema") or message.get("label_config")
        answer: dict[str, Any] = {"model_version": self.version}
        if isinstance(config, str) and config.strip():
            labelling = label_studio.read_config(config, self.purpose.classes)
            answer["without_label"] = [name for name in self.purpose.classes if name not in labelling.label_of]
        return answer

    def boxes(self, data: bytes) -> dict[str, Any]:
        """Boxes on an encoded image."""
        image = decode(data, self.purpose.spec.channels)
        found = self._found(image)
        rows = zip(found.xyxy.tolist(), found.confidence.tolist(), found.class_id.tolist(), strict=True)
        shown = [
            {"xyxy": [round(v, 2) for v in box], "class_name": self.purpose.classes[kind], "confidence": round(c, 4)}
            for box, c, kind in rows
        ]
        return {"boxes": shown, "width": image.shape[1], "height": image.shape[0], "model_version": self.version}

    def tasks(self, message: dict[str, Any]) -> dict[str, Any]:
        """Predictions for Label Studio's tasks, one each, in their order."""
        tasks, config = message["tasks"], message.get("label_config")
        if not isinstance(tasks, list) or not isinstance(config, str):
            raise Refusal(400, "tasks: expected a list, and beside it `label_config`, a text")
        if len(tasks) > MOST_TASKS:
            raise Refusal(413, f"{len(tasks)} tasks at once, at most {MOST_TASKS} are taken: send smaller batches")
        labelling = label_studio.read_config(config, self.purpose.classes)
        return {"results": [self._predict(task, labelling) for task in tasks]}

    def _predict(self, task: Any, labelling: label_studio.Labelling) -> dict[str, Any]:
        where = label_studio.image_of(task, labelling)
        try:
            data = label_studio.decode_data(where) if where.startswith("data:") else self._file(where)
            image = decode(data, self.purpose.spec.channels)
        except DataError as error:
            raise Refusal(422, f"task {label_studio.task_name(task)}: {error}") from error
        size = (image.shape[1], image.shape[0])
        return label_studio.prediction(self._found(image), size, self.purpose.classes, labelling, self.version)

    def _found(self, image: Image) -> Detections:
        found = self.worker.detect(image)
        keep = found.confidence >= self.least[found.class_id]
        return Detections(found.xyxy[keep], found.confidence[keep], found.class_id[keep])

    def _file(self, where: str) -> bytes:
        name = label_studio.path_of(where)
        if self.images is None:
            raise DataError(f"{where[:100]}: names a file; start this server with --images and the folder it lies in")
        root = self.images.resolve()
        path = (root / name).resolve()
        if root not in path.parents or not path.is_file():
            raise DataError(f"{name[:100]}: is no file below the served folder")
        if path.stat().st_size > LARGEST_BODY:
            raise DataError(f"{name[:100]}: is larger than {LARGEST_BODY >> 20} MB")
        return path.read_bytes()


def decode(data: bytes, channels: int) -> Image:
    """An encoded image as (H, W) grey or (H, W, 3) BGR.

    Raises:
        DataError: not an image, or a giant one: its size is read before its pixels are.
    """
    try:
        with Picture.open(io.BytesIO(data), formats=PICTURES) as header:
            width, height = header.size
    except Picture.DecompressionBombError as error:
        raise DataError(f"image: {error}") from error
    except Exception as error:  # Pillow raises whatever the bytes spell
        raise DataError(f"image: its bytes are not a picture ({', '.join(PICTURES)})") from error
    if width * height > LARGEST_IMAGE:
        raise DataError(f"image: {width}x{height} pixels, at most {LARGEST_IMAGE} are taken")
    flag = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    if image is None:
        raise DataError("image: its header is a picture's, its content is damaged")
    return np.asarray(image, np.uint8)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: LabelServer
    protocol_version = "HTTP/1.1"
    server_version = "label_server"
    sys_version = ""
    timeout = SOCKET_S

    def do_GET(self) -> None:
        """Health, at two addresses."""
        self._serve({"/": self.server.service.health, "/health": self.server.service.health})

    def do_POST(self) -> None:
        """Everything else."""
        service = self.server.service
        self._serve(
            {
                "/predict": self._predict,
                "/setup": lambda: service.setup(self._message()),
                "/webhook": lambda: (self._body(), {"status": "not trained here"})[1],
            }
        )

    def _serve(self, routes: dict[str, Callable[[], dict[str, Any]]]) -> None:
        path = self.path.partition("?")[0].rstrip("/") or "/"
        try:
            if path not in routes:
                known = path in ("/", "/health", "/predict", "/setup", "/webhook")
                self.close_connection = True  # a body that nobody read would be taken for the next request
                raise Refusal(405 if known else 404, f"{self.command} {path[:80]}: there is no such thing here")
            answer, status = routes[path](), 200
        except Refusal as refusal:
            answer, status = {"error": str(refusal)}, refusal.status
        except DataError as error:
            answer, status = {"error": str(error)}, 422
        except (TimeoutError, ConnectionError):
            self.close_connection = True
            return
        except Exception as error:  # the connection still gets an answer, and the operator a line
            self.log_error("%s: %s", type(error).__name__, error)
            answer, status = {"error": f"{type(error).__name__}: {error}"}, 500
        self._reply(status, answer)

    def _predict(self) -> dict[str, Any]:
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind.startswith("image/") or kind == "application/octet-stream":
            return self.server.service.boxes(self._body())
        message = self._message()
        if "tasks" in message:
            return self.server.service.tasks(message)
        if isinstance(message.get("image"), str):
            return self.server.service.boxes(label_studio.decode_data(message["image"]))
        raise Refusal(400, 'expected an image (Content-Type: image/...), {"image": base64}, or {"tasks": [...]}')

    def _message(self) -> dict[str, Any]:
        try:
            message = json.loads(self._body())
        except (ValueError, RecursionError) as error:
            raise Refusal(400, f"the body is not JSON: {error}") from error
        if not isinstance(message, dict):
            raise Refusal(400, "the body is not a JSON object")
        return message

    def _body(self) -> bytes:
        """The request's body, in limited time and size."""
        text = self.headers.get("Content-Length", "")
        if not (text.isascii() and text.isdigit()) or "Transfer-Encoding" in self.headers:
            self.close_connection = True
            raise Refusal(411, "Content-Length is missing: send the body whole, not in chunks")
        length, deadline = int(text), time.monotonic() + BODY_S
        if length > LARGEST_BODY:
            self.close_connection = True
            raise Refusal(413, f"{length} bytes, at most {LARGEST_BODY} are taken")
        parts: list[bytes] = []
        while length:
            part = self.rfile.read1(min(length, 1 << 20))
            if not part or time.monotonic() > deadline:
                self.close_connection = True
                raise Refusal(408, "the body did not come in time")
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def _reply(self, status: int, answer: dict[str, Any]) -> None:
        data = json.dumps(answer).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(data)
        except (TimeoutError, ConnectionError):
            self.close_connection = True


class LabelServer(ThreadingHTTPServer):
    """The listening socket: a thread a connection, a limited number of them."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = CONNECTIONS

    def __init__(self, address: tuple[str, int], service: Service):
        self.service = service
        self._slots = threading.BoundedSemaphore(CONNECTIONS)
        super().__init__(address, Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for the connection, unless there are too many."""
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """As the base class does, and then the place is free again."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """One line instead of a traceback."""
        error = sys.exc_info()[1]
        print(f"label_server: {client_address[0]}: {type(error).__name__}: {error}", file=sys.stderr)


def start_worker(model: Path, purpose: Purpose, recipe: DetectRecipe) -> Worker:
    """The thread that owns the model, ready.

    Raises:
        ToolError: the model cannot be opened.
    """
    make = partial(Detector, spec=purpose.spec, settings=settings_of(recipe))
    worker = Worker(lambda: opened(model, purpose.spec, purpose.classes), make)
    worker.start()
    worker.wait_ready()
    return worker


def parser() -> argparse.ArgumentParser:
    """Arguments of the step."""
    p = argparse.ArgumentParser(prog="python -m tools label_server", description=__doc__.splitlines()[0])
    p.add_argument("--model", type=Path, required=True, help="checkpoint, .nb, .onnx, or a Paddle model's folder")
    p.add_argument("--like", type=Path, help="dataset of the model's classes and input, where the model does not say")
    p.add_argument("--recipe", type=Path, help="boxes over its review threshold are shown; default: 0.3")
    p.add_argument("--images", type=Path, help="folder of files that tasks may name")
    p.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    p.add_argument("--port", type=int, default=9090, help="0: any free one (%(default)s)")
    return p


def main(arguments: Sequence[str]) -> None:
    """Run the step."""
    args = parser().parse_args(arguments)
    if args.images is not None and not args.images.is_dir():
        raise ToolError(f"--images {args.images}: is not a folder")
    purpose = purpose_of(args.model, read_dataset(args.like) if args.like else None)
    recipe = choose_recipe(args.recipe, None, purpose.classes).detect
    least = np.minimum(thresholds_of(recipe, purpose.classes), recipe.review)
    version = f"{purpose.product or args.model.stem} {model_hash(args.model)[:12]}"
    with told_to_end() as ended:
        worker = start_worker(args.model, purpose, recipe)
        try:
            server = LabelServer((args.host, args.port), Service(worker, purpose, least, version, args.images))
        except OSError as error:
            worker.stop()
            where = f"{args.host}:{args.port}"
            raise ToolError(f"cannot listen on {where}: {error.strerror}; choose another --port") from error
        if args.host not in ("127.0.0.1", "localhost", "::1"):
            print("label_server: there is no password; whoever reaches this address can use it", file=sys.stderr)
        port, names = server.server_address[1], ", ".join(purpose.classes)
        print(f"http://{args.host}:{port}: {version}, classes {names}", flush=True)
        serve(server, worker, ended)


@contextmanager
def told_to_end() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set, while the block runs."""
    ended = threading.Event()
    before = {number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def serve(server: LabelServer, worker: Worker, ended: threading.Event) -> None:
    """Answer requests until the event is set, then close.

    Raises:
        ToolError: the thread that owns the model died.
    """
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True).start()
    while not ended.wait(1.0) and worker.is_alive():
        pass
    server.shutdown()
    server.server_close()
    if not ended.is_set():
        raise ToolError("the model's thread ended: its process died, or it ran out of memory; start again")
    worker.stop()
