"""A small RTSP server: MPEG transport stream of a test picture, interleaved in the TCP connection (RFC 2326)."""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import subprocess
import threading

from tests.capture.streams import HEIGHT, WIDTH

PACKET = 7 * 188  # transport stream packets that fit into one RTP packet
SDP = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=test\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:track1\r\n"


class RtspServer:
    """Serves any number of clients; `cut` drops them all and stops listening, `start` listens again."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = int(probe.getsockname()[1])
        self.address = f"rtsp://127.0.0.1:{self._port}/live"
        self._listener: socket.socket | None = None
        self._clients: list[socket.socket] = []

    def start(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self._port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self) -> None:
        for connection in [self._listener, *self._clients]:
            if connection is not None:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                connection.close()
        self._clients.clear()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                self._clients.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client.makefile("rb") as lines:
            while True:
                request = lines.readline().decode().split()
                headers = {}
                for line in iter(lines.readline, b"\r\n"):
                    if not line:
                        return
                    name, _, value = line.decode().partition(":")
                    headers[name.lower()] = value.strip()
                if not request:
                    return
                client.sendall(self._answer(request[0], headers))
                if request[0] == "PLAY":
                    return self._play(client)

    def _answer(self, method: str, headers: dict[str, str]) -> bytes:
        number = headers.get("cseq", "0")
        head = f"RTSP/1.0 200 OK\r\nCSeq: {number}\r\nSession: 1\r\n"
        if method == "OPTIONS":
            return f"{head}Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n\r\n".encode()
        if method == "DESCRIBE":
            return f"{head}Content-Type: application/sdp\r\nContent-Length: {len(SDP)}\r\n\r\n{SDP}".encode()
        if method == "SETUP" and "TCP" not in headers.get("transport", ""):
            return f"RTSP/1.0 461 Unsupported Transport\r\nCSeq: {number}\r\n\r\n".encode()
        if method == "SETUP":
            return f"{head}Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n\r\n".encode()
        return f"{head}\r\n".encode()

    def _play(self, client: socket.socket) -> None:
        source = ["-re", "-f", "lavfi", "-i", f"testsrc=size={WIDTH}x{HEIGHT}:rate=25"]
        coding = ["-c:v", "mpeg2video", "-g", "5", "-f", "mpegts", "-muxdelay", "0", "-"]
        command = ["ffmpeg", "-v", "quiet", *source, *coding]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            try:
                for number in itertools.count():
                    payload = child.stdout.read(PACKET)
                    header = struct.pack(">BBHII", 0x80, 33, number & 0xFFFF, number * 1000, 7)
                    client.sendall(struct.pack(">BBH", 0x24, 0, len(header) + len(payload)) + header + payload)
            finally:
                child.kill()
