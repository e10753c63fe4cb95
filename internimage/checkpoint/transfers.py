# SPDX-License-Identifier: Apache-2.0
"""Bring one file from an HTTP server whole, or say why that failed.

A server, a proxy or the network between may break a transfer off, let it starve, send
a page that says so instead of the file, or change the file halfway. None of that shows
in what arrives: it has to be looked for.
"""

import json
import os
import re
import shutil
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage, HTTPResponse, InvalidURL
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, OpenerDirector, Request, build_opener

from mmengine.logging import print_log

from ..version import __version__


@dataclass(frozen=True)
class Limits:
    """When to give up; see :data:`LIMITS`.

    Args:
        tries: Tries in a row that bring less than ``progress`` new bytes.
        progress: Bytes that make a try worth its while.
        pause_s: Seconds before the second try; twice as long before each next one.
        longest_pause_s: The most that a server may ask for.
        stall_s: Seconds without a byte after which a transfer is broken off.
        slow_s: Seconds over which the speed is measured.
        slowest: Bytes a second below which a transfer is broken off.
    """

    tries: int = 4
    progress: int = 16 << 20
    pause_s: float = 1
    longest_pause_s: float = 60
    stall_s: float = 30
    slow_s: float = 60
    slowest: float = 10_000


LIMITS = Limits()
#: Answers that may be others a moment later.
PASSING = {408, 425, 429, 500, 502, 503, 504}
BLOCK = 1 << 20


class TransferError(Exception):
    """A transfer failed for good; the text says what came and what to do."""


class _BrokenError(Exception):
    """A transfer failed, and another try may succeed."""

    def __init__(self, what: str, advice: str, pause_s: float = 0) -> None:
        super().__init__(what)
        self.advice = advice
        self.pause_s = pause_s


UNREACHABLE = 'check the network, and set the variable https_proxy where it is needed'
UNSTEADY = 'try again later'
WRONG_ADDRESS = (
    'open the address in a browser: it may want a login, or be that of a page about '
    'the file (on huggingface.co, /blob/ and /raw/ where /resolve/ is needed)'
)


class Transfer:
    """A file on its way from ``source`` to ``part``, over as many tries as it takes.

    Beside the part lies a note of what the server said about the file. A later try,
    also one of a later process, goes on where the last one ended, if the server says
    that the file is still the same.

    Args:
        source: URL to ask, http or https.
        part: Path of the unfinished file, used by nobody else at the same time.
        show: Gets the number of bytes that are here, and the length or None.
    """

    def __init__(
        self, source: str, part: Path, show: Callable[[int, int | None], None]
    ) -> None:
        self.source = source
        self.part = part
        self.show = show
        self.resumed = False
        #: Whether the protocol told where the file ends.
        self.has_end = True
        self._note = part.with_name(f'{part.name}.json')
        self._redirects = _Redirects()
        self._opener: OpenerDirector = build_opener(self._redirects)

    @property
    def sha256(self) -> str | None:
        """The digest that the server announced, as huggingface.co does."""
        return self._redirects.sha256 or self._read_note().get('sha256')

    def run(self) -> None:
        """Bring the file.

        Raises:
            TransferError: It is not here, or not whole.
        """
        best, fruitless = self._size(), 0
        while True:
            try:
                return self._attempt()
            except _BrokenError as error:
                size = self._size()
                if size >= best + LIMITS.progress:
                    best, fruitless = size, 0
                fruitless += 1
                if fruitless >= LIMITS.tries:
                    raise TransferError(
                        f'{error}, after {fruitless} tries: {error.advice}'
                        f'{self._kept()}'
                    ) from error.__cause__
                pause = LIMITS.pause_s * 2 ** (fruitless - 1)
                pause = min(max(pause, error.pause_s), LIMITS.longest_pause_s)
                print_log(
                    f'{self.source}: {error}; next try in {pause:.0f} s',
                    logger='current',
                )
                time.sleep(pause)
            except OSError as error:  # not of the network: those are told apart below
                raise TransferError(
                    f'{self.part} cannot be written ({error.strerror or error}): make '
                    'room, or set the variable TORCH_HOME to a folder of a larger disk'
                ) from error

    def forget(self) -> None:
        """Delete what is here, so that the next try begins anew."""
        self.part.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _read_note(self) -> dict[str, Any]:
        try:
            note = json.loads(self._note.read_bytes())
        except (OSError, ValueError):  # a kill may leave half of one
            return {}
        return note if isinstance(note, dict) else {}

    def _kept(self) -> str:
        if self._size() and self._read_note().get('validator'):
            return f', which goes on from what is kept in {self.part}'
        return ''

    def _attempt(self) -> None:
        note, offset = self._read_note(), self._size()
        if offset and offset == note.get('length'):
            self.resumed = True  # killed between the last byte and the final name
            return
        headers = {
            'User-Agent': f'internimage/{__version__}',
            'Accept-Encoding': 'identity',
        }
        if offset and note.get('validator'):
            headers['Range'] = f'bytes={offset}-'
            headers['If-Range'] = note['validator']
        with self._open(Request(self.source, headers=headers)) as response:
            if response.status == 206:
                self._check_continues(response, offset, note)
                length, self.resumed = note['length'], True
            else:
                offset, self.resumed = 0, False
                length = response.length
                self.has_end = length is not None or response.chunked
                self._begin(response)
            self._check_room(length, offset)
            self._receive(response, offset, length)

    def _open(self, request: Request) -> HTTPResponse:
        """Ask for the file; return the answer if it is one that brings bytes of it."""
        try:
            response = _first_answer(self._opener, request)
        except HTTPError as error:
            error.close()
            raise self._judge_status(error) from error
        except (InvalidURL, ValueError, OverflowError) as error:
            raise TransferError(
                'the URL, or one that the server sends us on to, is not valid '
                f'({_said(error)}): check the address'
            ) from error
        except (OSError, HTTPException) as error:
            reason = error.reason if isinstance(error, URLError) else error
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise TransferError(
                    f"the server's certificate is not trusted ({reason.verify_message})"
                    ": check this machine's clock, and set the variable SSL_CERT_FILE "
                    'where your network has certificates of its own'
                ) from error
            raise _BrokenError(
                f'the server cannot be reached ({_said(reason)})',
                UNREACHABLE,
            ) from error
        kind = response.headers.get_content_type()
        encoding = response.headers.get('Content-Encoding') or 'identity'
        problem = ''
        if response.status not in (200, 206):
            problem = f'the server answered {response.status} {_said(response.reason)}'
        elif kind in ('text/html', 'application/xhtml+xml'):
            problem = f'a web page came ({kind}) and not a file'
        elif encoding.lower() != 'identity':
            problem = (
                f'the file came compressed ({_said(encoding)}) without being asked to'
            )
        if problem:
            response.close()
            raise TransferError(f'{problem}: {WRONG_ADDRESS}')
        return response

    def _judge_status(self, error: HTTPError) -> Exception:
        """Turn an answer that is no success into what to raise."""
        status = f'the server answered {error.code} {_said(error.reason)}'
        if 300 <= error.code < 400:
            return TransferError(
                'the server redirects where we do not follow '
                f'({_said(error.reason)}): take another address'
            )
        if error.code == 416:  # the part is longer than the file has become
            self.forget()
            return _BrokenError(status, UNSTEADY)
        if error.code in PASSING:
            pause = error.headers.get('Retry-After', '')
            return _BrokenError(
                status, UNSTEADY, float(pause) if re.fullmatch(r'\d+', pause) else 0
            )
        advice = {
            401: 'it wants a login',
            403: 'it wants a login, or does not serve your network',
            404: 'check the address',
            407: 'set the variable https_proxy to http://<user>:<password>@<host>:<port>',
            410: 'check the address',
        }
        return TransferError(f'{status}: {advice.get(error.code, "check the address")}')

    def _begin(self, response: HTTPResponse) -> None:
        """Note what is needed to go on later, before the first byte is here."""
        self.forget()
        self._note.write_text(
            json.dumps(
                {
                    # Without a length nobody could tell where to go on.
                    'validator': response.length and _validator(response.headers),
                    'length': response.length,
                    'sha256': self._redirects.sha256,
                }
            )
        )

    def _check_continues(
        self, response: HTTPResponse, offset: int, note: dict[str, Any]
    ) -> None:
        """Refuse a part that does not follow what is here, of the same file."""
        expected = (
            f'bytes {offset}-{(note.get("length") or 0) - 1}/{note.get("length")}'
        )
        came = response.headers.get('Content-Range', '')
        same = _validator(response.headers) in (None, note.get('validator'))
        if not (offset and same and came == expected):
            self.forget()
            raise _BrokenError(
                f'the server sent {_said(came or "a part")}, and not {expected}',
                UNSTEADY,
            )

    def _check_room(self, length: int | None, offset: int) -> None:
        free = shutil.disk_usage(self.part.parent).free
        if length is not None and length - offset > free:
            raise TransferError(
                f'{megabytes(length - offset)} MB are to come and the disk of '
                f'{self.part.parent} has {megabytes(free)} MB free: make room, or set '
                'the variable TORCH_HOME to a folder of a larger disk'
            )

    def _receive(self, response: HTTPResponse, offset: int, length: int | None) -> None:
        have, since, had = offset, time.monotonic(), offset
        of = '' if length is None else f' of {length}'
        with self.part.open('r+b' if offset else 'wb') as file:
            file.seek(offset)
            while block := _read(response, f'the transfer broke off after {have}{of}'):
                file.write(block)
                have += len(block)
                self.show(have, length)
                now = time.monotonic()
                if now - since >= LIMITS.slow_s:
                    if have - had < LIMITS.slowest * (now - since):
                        raise _BrokenError(
                            f'{have}{of} bytes came, the last {have - had} of them in '
                            f'{now - since:.0f} s, which is given up as too slow',
                            UNSTEADY,
                        )
                    since, had = now, have
            file.flush()
            os.fsync(file.fileno())
        if length is not None and have != length:
            raise _BrokenError(
                f'the transfer broke off after {have}{of} bytes', UNSTEADY
            )


def _first_answer(opener: OpenerDirector, request: Request) -> HTTPResponse:
    """Wait for an answer's head, as long as a transfer may stall.

    urllib bounds the wait for each piece of a head, not for all of it, and not for the
    address of a name. So another thread waits, and may be left behind.
    """
    answers: SimpleQueue[Any] = SimpleQueue()

    def ask() -> None:
        try:
            answers.put(opener.open(request, timeout=LIMITS.stall_s))
        except BaseException as error:
            answers.put(error)

    Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=2 * LIMITS.stall_s)
    except Empty:
        raise TimeoutError(f'no answer in {2 * LIMITS.stall_s:.0f} s') from None
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _read(response: HTTPResponse, what: str) -> bytes:
    """Read what is here, at most a block; empty at the end."""
    try:
        return response.read1(BLOCK)
    except (OSError, HTTPException, ValueError) as error:
        raise _BrokenError(f'{what} bytes ({_said(error)})', UNSTEADY) from error


def _said(what: object) -> str:
    """Quote the other side, which may say anything at any length, in a line of ours."""
    text = str(what) or type(what).__name__
    text = ''.join(char if char.isprintable() else ' ' for char in text[:200])
    return ' '.join(text.split())


def _validator(headers: HTTPMessage) -> str | None:
    """Return what tells one state of a file from another, if the server says it."""
    etag = headers.get('ETag', '')
    # W/"..." only says that the two mean the same.
    said = etag if etag.startswith('"') else headers.get('Last-Modified', '')
    return said if said.isprintable() and said else None


class _Redirects(HTTPRedirectHandler):
    """Follow a server to another address, not out of HTTP and not out of TLS."""

    inf_msg = 'in a circle; the last answer was: '

    def __init__(self) -> None:
        self.sha256: str | None = None

    def redirect_request(
        self,
        req: Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> Request | None:
        new = newurl.split(':', 1)[0].lower()
        if new not in ('http', 'https') or (req.type, new) == ('https', 'http'):
            raise HTTPError(
                req.full_url, code, f'from {req.type} to {new}', headers, fp
            )
        # huggingface.co tells what is stored, and sends on to where it is.
        linked = re.fullmatch('"?([0-9a-f]{64})"?', headers.get('X-Linked-ETag', ''))
        if linked:
            self.sha256 = linked[1]
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def megabytes(size: int) -> str:
    """Write a number of bytes as MB."""
    return f'{size / 1e6:.0f}' if size > 1e7 else f'{size / 1e6:.1f}'
