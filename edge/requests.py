"""The desk that answers requests: each transaction once, in a thread of its own, whatever is asked of it."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection

import msgspec

from edge.clock import Beat
from edge.errors import EdgeError
from edge.event import Request, Response

log = logging.getLogger(__name__)

REQUEST_BYTES = 65_536
REQUESTS_WAITING = 32
RESPONSES_REMEMBERED = 64
TURN_S = 5.0  # how long the thread waits for a request before it shows that it is there
HUNG_S = 60.0  # no handler takes so long: what does is done by a process of its own
STOP_S = 1.0  # how long a handler may go on when the service stops


class RequestDesk:
    """Answers requests in a thread of its own, each transaction once: a repeated one gets the answer it had.

    Attributes:
        verbs: what may be requested.
        beat: moves with each request, and while there is none.
    """

    def __init__(
        self,
        verbs: Collection[str],
        handler: Callable[[str, bytes], Response],
        respond: Callable[[str, Response, bytes | None], bytes],
    ) -> None:
        """Prepare; requests are answered from `start` on.

        Args:
            handler: answers a request (verb, payload); the transaction is filled in here.
            respond: sends a response (verb, response, None), or again the bytes that it gave back the first time.
        """
        self.verbs = frozenset(verbs)
        self._handler = handler
        self._respond = respond
        self._waiting: queue.Queue[tuple[str, bytes] | None] = queue.Queue(REQUESTS_WAITING)
        self._answered: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._thread = threading.Thread(target=self._run, name="requests", daemon=True)
        self.beat = Beat("requests", HUNG_S)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def put(self, verb: str, payload: bytes) -> None:
        """Take in a request; when too many wait already, the answer is that."""
        try:
            self._waiting.put_nowait((verb, payload))
        except queue.Full:
            busy = f"{REQUESTS_WAITING} requests are waiting already; try again later"
            self._respond(verb, Response(transaction="", ok=False, text=busy), None)

    def stop(self) -> None:
        """Answer what is being handled, if that takes no longer than `STOP_S`."""
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)
        if self._thread.is_alive():
            self._thread.join(STOP_S)

    def _run(self) -> None:
        while True:
            self.beat.now(TURN_S)
            try:
                request = self._waiting.get(timeout=TURN_S)
            except queue.Empty:
                continue
            if request is None:
                break
            self.beat.now()
            self._answer(*request)
        self.beat.rest()

    def _answer(self, verb: str, payload: bytes) -> None:
        transaction, problem = self._read(verb, payload)
        if problem:
            self._respond(verb, Response(transaction=transaction, ok=False, text=problem), None)
            return
        key = (verb, transaction)
        if key in self._answered:
            self._respond(verb, Response(transaction=transaction, ok=True, text=""), self._answered[key])
            return
        response = msgspec.structs.replace(self._handle(verb, payload), transaction=transaction)
        self._answered[key] = self._respond(verb, response, None)
        if len(self._answered) > RESPONSES_REMEMBERED:
            self._answered.popitem(last=False)

    def _read(self, verb: str, payload: bytes) -> tuple[str, str]:
        """The transaction, and what is wrong with the request ("" for nothing)."""
        if verb not in self.verbs:
            return "", f"there is no request {verb[:64]!r}; there are: {', '.join(sorted(self.verbs)) or 'none'}"
        if len(payload) > REQUEST_BYTES:
            return "", f"the request has {len(payload)} bytes, at most {REQUEST_BYTES} are read"
        try:
            transaction = msgspec.json.decode(payload, type=Request).transaction
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return "", f'the request is not understood ({error}); it is JSON with a "transaction" of your choice'
        if not 1 <= len(transaction) <= 128:
            return "", "the transaction has 1 to 128 characters"
        return transaction, ""

    def _handle(self, verb: str, payload: bytes) -> Response:
        try:
            return self._handler(verb, payload)
        except EdgeError as error:
            text = str(error)
        except Exception as error:
            text = f"{verb} failed inside ({type(error).__name__}: {error}); see the log of the service"
            log.error("request %s failed: %s: %s", verb, type(error).__name__, error)
            log.debug("request failed", exc_info=True)
        return Response(transaction="", ok=False, text=text)
