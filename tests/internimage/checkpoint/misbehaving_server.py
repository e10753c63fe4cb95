# SPDX-License-Identifier: Apache-2.0
"""A server on this machine that answers as real ones do on bad days, and its files."""

import hashlib
import io
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import pytest
import torch

from internimage.checkpoint.downloads import DownloadError, cached_path, download


def saved(value: object, **kwargs: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **kwargs)
    return file.getvalue()


WEIGHTS = saved({'x': torch.arange(3000)})
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
# This format does not say where it ends.
OLD_FORMAT = saved({'x': torch.arange(3000)}, _use_new_zipfile_serialization=False)


def fails(url: str, *texts: str, **kwargs: object) -> str:
    """Check that nothing ends under the final name; return the sentence."""
    with pytest.raises(DownloadError) as error:
        download(url, **kwargs)
    sentence = str(error.value)
    for text in (url, *texts):
        assert text in sentence
    assert '\n' not in sentence
    assert not cached_path(url).exists()
    return sentence


class Handler(BaseHTTPRequestHandler):
    """Answers what ``server.answers`` has for the path, and notes the request."""

    protocol_version = 'HTTP/1.1'

    def do_GET(self) -> None:
        self.close_connection = True
        self.server.requests.append((self.path, dict(self.headers)))
        with suppress(BrokenPipeError, ConnectionResetError):  # it had enough
            self.server.answers[self.path](self)

    def head(self, status: int = 200, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace('_', '-'), str(value))
        self.end_headers()

    def log_message(self, *_) -> None:
        pass


Answer = Callable[[Handler], None]


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.server_port}'
        self.answers: dict[str, Answer] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.end = Event()  # wakes answers that sleep


@contextmanager
def serve() -> Iterator[Server]:
    with Server() as server:
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.end.set()
        server.shutdown()


def whole(data: bytes, **headers: object) -> Answer:
    return cut(data, len(data), **headers)


def cut(data: bytes, after: int, **headers: object) -> Answer:
    """Promise all of the data, and hang up before its end."""

    def answer(handler: Handler) -> None:
        handler.head(**{'Content_Length': len(data), **headers})
        handler.wfile.write(data[:after])

    return answer


def endless(data: bytes, after: int, every_s: float) -> Answer:
    """Stop after some bytes; then send one now and then, but never all."""

    def answer(handler: Handler) -> None:
        handler.head(Content_Length=10 * len(data))
        handler.wfile.write(data[:after])
        while not handler.server.end.wait(every_s):
            handler.wfile.write(b'.')

    return answer


def slow_head(handler: Handler) -> None:
    """Send a head that takes for ever, each byte of it in time."""
    handler.wfile.write(b'HTTP/1.1 200 OK\r\nX-Long: ')
    while not handler.server.end.wait(0.05):
        handler.wfile.write(b'.')


def chunked(data: bytes, end: bytes = b'0\r\n\r\n') -> Answer:
    def answer(handler: Handler) -> None:
        handler.head(Transfer_Encoding='chunked')
        handler.wfile.write(b'%x\r\n%s\r\n%s' % (len(data), data, end))

    return answer


def without_length(data: bytes, **headers: object) -> Answer:
    """Hang up at the end: only that says where it is."""

    def answer(handler: Handler) -> None:
        handler.head(**headers)
        handler.wfile.write(data)

    return answer


def status(code: int, **headers: object) -> Answer:
    return lambda handler: handler.head(code, Content_Length=0, **headers)


def in_turn(*answers: Answer) -> Answer:
    left = list(answers)
    return lambda handler: (left.pop(0) if len(left) > 1 else left[0])(handler)


def in_parts(
    data: bytes, after: int | None = None, pause_s: float = 0, **headers: object
) -> Answer:
    """Serve any rest of the data that is asked for, of the state that is asked for."""

    def answer(handler: Handler) -> None:
        asked = re.fullmatch(r'bytes=(\d+)-', handler.headers.get('Range', ''))
        state = handler.headers.get('If-Range')
        start, code = 0, 200
        if asked and state in (None, headers.get('ETag'), headers.get('Last_Modified')):
            start, code = int(asked[1]), 206
        more = {'Content_Length': len(data) - start, **headers}
        if code == 206:
            more['Content_Range'] = f'bytes {start}-{len(data) - 1}/{len(data)}'
        handler.head(code, **more)
        rest = data[start:][:after]
        handler.wfile.write(rest[: len(rest) // 2])
        if pause_s:
            time.sleep(pause_s)
        handler.wfile.write(rest[len(rest) // 2 :])

    return answer
