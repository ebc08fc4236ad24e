"""A small web server: one page, and a few calls that answer JSON. It serves this machine, or who has its token."""

from __future__ import annotations

import base64
import io
import json
import secrets
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from hmac import compare_digest
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from urllib.parse import parse_qs, urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wmpo.errors import UserError, reason
from wmpo.io.plain import Json, JsonObject

LARGEST = 1 << 16  # bytes of a call
PATIENCE = 60.0  # seconds that a connection may say nothing in the middle of a call, or between two
HERE = ("127.0.0.1", "localhost", "::1")
Call = Callable[[JsonObject], Json]


def picture_strip(frames_THWC: NDArray[np.uint8]) -> str:
    """A data URL: the frames one below the other, as PNG."""
    buffer = io.BytesIO()
    T, H, W, _ = frames_THWC.shape
    Image.fromarray(frames_THWC.reshape(T * H, W, 3)).save(buffer, "png", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Who goes away in the middle of a call is no fault to tell the terminal."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def make_server(page: str, calls: Mapping[str, Call], host: str, port: int) -> tuple[Server, str]:
    """(server, its address to open). `calls` are made one at a time. Raises UserError where the port is taken.

    Beyond this machine the address holds a token, which every call needs.
    """
    folder = files("wmpo.web")  # one script serves both pages, as a part of each
    shared = folder.joinpath("shared.js").read_bytes()
    content = folder.joinpath(page).read_bytes().replace(b"/* shared.js */", shared)
    token = "" if host in HERE else secrets.token_urlsafe(16)
    busy = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = PATIENCE

        def log_message(self, format: str, *args: object) -> None:
            """Nothing on the terminal."""

        def answer(self, status: HTTPStatus, body: bytes, kind: str = "application/json") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header(
                "Content-Security-Policy", "default-src 'self' data: 'unsafe-inline'; frame-ancestors 'none'"
            )
            with suppress(ConnectionError):  # the page may have been closed meanwhile
                self.end_headers()
                self.wfile.write(body)

        def welcome(self) -> bool:
            """With the token; without one, no page of another site, whose name only pretends to be this machine's."""
            if token:
                given = self.headers.get("X-Token") or parse_qs(urlsplit(self.path).query).get("token", [""])[0]
                return compare_digest(given.encode(), token.encode())
            try:
                return urlsplit(f"//{self.headers.get('Host', '')}").hostname in HERE
            except ValueError:  # it is no name at all
                return False

        def do_GET(self) -> None:
            if not self.welcome():
                self.answer(HTTPStatus.FORBIDDEN, b'{"error": "The address lacks its token."}')
            elif urlsplit(self.path).path == "/":
                self.answer(HTTPStatus.OK, content, "text/html; charset=utf-8")
            else:
                self.answer(HTTPStatus.NOT_FOUND, b"{}")

        def do_POST(self) -> None:
            """Only with a type that a form of another site can't send."""
            call = calls.get(urlsplit(self.path).path.strip("/"))
            length = self.headers.get("Content-Length", "")
            fits = length.isdecimal() and len(length) < 10 and int(length) <= LARGEST
            body = self.rfile.read(int(length)) if fits else None
            if not self.welcome() or self.headers.get("Content-Type") != "application/json":
                self.close_connection = True
                self.answer(HTTPStatus.FORBIDDEN, b'{"error": "The address lacks its token."}')
                return
            try:
                asked = json.loads(body or b"")
                if call is None or not isinstance(asked, dict):
                    raise UserError("There is no such call.")
                with busy:
                    answer = call(asked)
                status = HTTPStatus.OK
            except Exception as error:  # shown on the page
                told = str(error) if isinstance(error, UserError) else reason(error)
                answer, status = {"error": told}, HTTPStatus.BAD_REQUEST
                self.close_connection = True  # what is left of a body that was too long
            self.answer(status, json.dumps(answer).encode())

    try:
        server = Server((host, port), Handler)
    except (OSError, OverflowError) as error:
        raise UserError(f"No page can be served at {host}:{port} ({error}): choose another --port or --host.") from None
    query = f"/?token={token}" if token else "/"
    return server, f"http://{host}:{server.server_address[1]}{query}"


def serve(page: str, calls: Mapping[str, Call], host: str, port: int) -> None:
    """Until Ctrl-C."""
    server, address = make_server(page, calls, host, port)
    with server:
        try:
            print(f"Open {address} in a browser; Ctrl-C ends it.", flush=True)
            server.serve_forever()
        except KeyboardInterrupt:
            print()
