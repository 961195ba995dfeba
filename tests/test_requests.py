"""The desk that answers requests: once each, whatever is asked, whoever behind it fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import msgspec
import pytest

from edge.errors import EdgeError
from edge.event import Response, encode
from edge.requests import REQUESTS_WAITING, RESPONSES_REMEMBERED, RequestDesk
from tests.brokers import wait_until


class Office:
    """A desk, somebody behind it, and all that went out."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bytes]] = []
        self.sent: list[bytes] = []
        self.handler: Callable[[str, bytes], Response] = lambda _v, _p: Response(transaction="", ok=True, text="done")
        self.desk = RequestDesk(("status", "slow"), self._handle, self._respond)

    def _handle(self, verb: str, payload: bytes) -> Response:
        self.asked.append((verb, payload))
        return self.handler(verb, payload)

    def _respond(self, _verb: str, response: Response, remembered: bytes | None) -> bytes:
        payload = remembered or encode(msgspec.structs.replace(response, seq=len(self.sent) + 1))
        self.sent.append(payload)
        return payload

    def ask(self, verb: str, payload: bytes) -> Response:
        before = len(self.sent)
        self.desk.put(verb, payload)
        wait_until(lambda: len(self.sent) > before, 5, f"an answer to {verb}")
        return msgspec.json.decode(self.sent[before], type=Response)


@pytest.fixture
def office() -> Iterator[Office]:
    made = Office()
    made.desk.start()
    yield made
    made.desk.stop()


def test_transaction_is_carried_out_once_and_answered_alike(office: Office) -> None:
    first = office.ask("status", b'{"transaction":"t1","more":[1]}')
    assert (first.ok, first.transaction, first.text) == (True, "t1", "done")
    assert office.ask("status", b'{"transaction":"t1"}') == first, "the same answer, number and all"
    assert office.ask("slow", b'{"transaction":"t1"}').seq == 3, "another verb is another request"
    assert office.asked == [("status", b'{"transaction":"t1","more":[1]}'), ("slow", b'{"transaction":"t1"}')]


def test_memory_of_answers_is_bounded(office: Office) -> None:
    for i in range(RESPONSES_REMEMBERED + 1):
        office.ask("status", b'{"transaction":"t%d"}' % i)
    office.ask("status", b'{"transaction":"t1"}')
    assert len(office.asked) == RESPONSES_REMEMBERED + 1, "still remembered"
    office.ask("status", b'{"transaction":"t0"}')
    assert len(office.asked) == RESPONSES_REMEMBERED + 2, "the oldest is forgotten"


@pytest.mark.parametrize(
    ("verb", "payload", "problem"),
    [
        ("status", b"", "not understood"),
        ("status", b"\xff\xfe", "not understood"),
        ("status", b"[" * 5000, "not understood"),
        ("status", b"{}", "missing required field `transaction`"),
        ("status", b'{"transaction":5}', "Expected `str`, got `int`"),
        ("status", b'{"transaction":""}', "1 to 128 characters"),
        ("status", b'{"transaction":"%s"}' % (b"x" * 129), "1 to 128 characters"),
        ("status", b'{"transaction":"%s"}' % (b"x" * 70_000), "at most 65536 are read"),
        ("reboot", b'{"transaction":"t"}', "there is no request 'reboot'; there are: slow, status"),
    ],
)
def test_malformed_request_is_told_what_is_wrong(office: Office, verb: str, payload: bytes, problem: str) -> None:
    response = office.ask(verb, payload)
    assert not response.ok and problem in response.text
    assert office.asked == []
    assert office.ask("slow", b'{"transaction":"t"}').ok, "it goes on"


def test_handler_that_fails_gives_an_answer(office: Office) -> None:
    def fail(_verb: str, payload: bytes) -> Response:
        raise EdgeError("no space") if b"expected" in payload else KeyError("x")

    office.handler = fail
    assert office.ask("status", b'{"transaction":"expected"}').text == "no space"
    response = office.ask("status", b'{"transaction":"other"}')
    assert not response.ok and response.text.startswith("status failed inside (KeyError: 'x')")


def test_too_many_are_told_to_come_again_and_stop_does_not_wait_for_them(office: Office) -> None:
    release = threading.Event()
    office.handler = lambda _v, _p: (release.wait(10), Response(transaction="", ok=True, text="late"))[1]
    office.desk.put("slow", b'{"transaction":"t"}')
    wait_until(lambda: office.asked, 5, "the handler to begin")
    for i in range(REQUESTS_WAITING):
        office.desk.put("slow", b'{"transaction":"x%d"}' % i)
    assert office.sent == []
    assert "requests are waiting already" in office.ask("slow", b'{"transaction":"y"}').text
    office.desk.stop()
    release.set()
