# SPDX-License-Identifier: Apache-2.0
import io
import socket
import ssl

import pytest
import torch

from internimage.checkpoint import transfers
from internimage.checkpoint.downloads import cached_path, download
from tests.internimage.checkpoint.misbehaving_server import (
    SHA256,
    WEIGHTS,
    cut,
    fails,
    in_parts,
    in_turn,
    saved,
    status,
    whole,
)


@pytest.mark.parametrize('states', [{'ETag': '"1"'}, {'Last_Modified': 'yesterday'}])
def test_goes_on(server, states):
    url = f'{server.url}/x.pth'
    server.answers['/x.pth'] = in_turn(
        cut(WEIGHTS, 3000, **states), in_parts(WEIGHTS, after=2000, **states)
    )
    assert 'goes on from what is kept in' in fails(url, f'after 5000 of {len(WEIGHTS)}')
    server.answers['/x.pth'] = in_parts(WEIGHTS, **states)
    assert download(url).read_bytes() == WEIGHTS
    ranges = [headers.get('Range') for _, headers in server.requests]
    assert ranges == [None, 'bytes=3000-', 'bytes=5000-']


CHANGED = {
    'says so': in_parts(saved(torch.ones(3000)), ETag='"2"'),
    'knows no parts': whole(saved(torch.ones(3000)), ETag='"2"'),
    'ignores If-Range': lambda handler: (
        handler.headers.__delitem__('If-Range'),
        in_parts(saved(torch.ones(3000)), ETag='"2"')(handler),
    ),
    'is shorter': in_turn(status(416), whole(saved(torch.ones(3000)))),
}


@pytest.mark.parametrize('case', CHANGED)
def test_changed_file_is_not_spliced(server, case):
    url = f'{server.url}/x.pth'
    server.answers['/x.pth'] = cut(WEIGHTS, 3000, ETag='"1"')
    fails(url)
    server.answers['/x.pth'] = CHANGED[case]
    assert torch.load(download(url)).tolist() == [1] * 3000


def test_no_parts_without_a_state(server):
    """What cannot be told from another state of the file is not gone on with."""
    for headers in ({}, {'ETag': 'W/"1"'}, {'ETag': '"1\r\n 2"'}):
        server.requests.clear()
        server.answers['/x.pth'] = in_turn(
            cut(WEIGHTS, 3000, **headers), cut(WEIGHTS, 3000, **headers)
        )
        fails(f'{server.url}/x.pth')
        assert not any('Range' in headers for _, headers in server.requests)


def test_damaged_part_begins_anew(server):
    """A part that a crash has damaged shows in the digest; then all comes again."""
    name = f'/x-{SHA256[:8]}.pth'
    url = f'{server.url}{name}'
    server.answers[name] = cut(WEIGHTS, 3000, ETag='"1"')
    fails(url)
    path = cached_path(url)
    path.with_name(f'{path.name}.part').write_bytes(bytes(2000))
    server.answers[name] = in_parts(WEIGHTS, ETag='"1"')
    assert download(url).read_bytes() == WEIGHTS
    # A part of full length, which was not looked at yet, is looked at.
    path.unlink()
    path.with_name(f'{path.name}.part').write_bytes(bytes(len(WEIGHTS)))
    path.with_name(f'{path.name}.part.json').write_text(f'{{"length": {len(WEIGHTS)}}}')
    assert download(url).read_bytes() == WEIGHTS
    # Half a note is none.
    path.unlink()
    path.with_name(f'{path.name}.part').write_bytes(bytes(2000))
    path.with_name(f'{path.name}.part.json').write_text('{"validator": "\\"1\\""')
    assert download(url).read_bytes() == WEIGHTS


def test_unsteady_network_is_borne(server, monkeypatch):
    """Tries that bring something do not count as fruitless."""
    limits = transfers.Limits(tries=2, progress=2000, pause_s=0)
    monkeypatch.setattr(transfers, 'LIMITS', limits)
    server.answers['/x.pth'] = in_parts(WEIGHTS, after=2500, ETag='"1"')
    assert download(f'{server.url}/x.pth').read_bytes() == WEIGHTS
    assert len(server.requests) == -(-len(WEIGHTS) // 2500)


@pytest.mark.parametrize(
    ('asked', 'waited'), [({}, 1), ({'Retry_After': 7}, 7), ({'Retry_After': 999}, 60)]
)
def test_a_busy_server_gets_the_time_it_asks_for(server, monkeypatch, asked, waited):
    pauses = []
    monkeypatch.setattr(transfers, 'LIMITS', transfers.Limits(tries=2))
    monkeypatch.setattr(transfers.time, 'sleep', pauses.append)
    server.answers['/x.pth'] = status(503, **asked)
    fails(f'{server.url}/x.pth', '503 Service Unavailable', 'try again later')
    assert pauses == [waited]


def test_mirror(server, monkeypatch):
    url = 'https://huggingface.co/OpenGVLab/InternImage/resolve/main/x.pth'
    monkeypatch.setenv('HF_ENDPOINT', f'{server.url}/')
    fails_at = '/OpenGVLab/InternImage/resolve/main/x.pth'
    server.answers[fails_at] = status(404)
    fails(url, '404', f'HF_ENDPOINT names the mirror {server.url}/: unset it, or')
    server.answers[fails_at] = whole(WEIGHTS)
    # Kept under the address that was asked for: mirrors come and go.
    assert download(url) == cached_path(url)
    monkeypatch.setenv('HF_ENDPOINT', 'mirror.org')
    fails(f'{url}2', "HF_ENDPOINT is 'mirror.org' and not http(s)://<host>")


def test_unreachable(server, monkeypatch):
    url = 'https://huggingface.co/x.pth'
    for name in ('https_proxy', 'HTTPS_PROXY', 'all_proxy', 'ALL_PROXY'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(
        socket, 'getaddrinfo', lambda *_, **__: (_ for _ in ()).throw(NO_NAME)
    )
    fails(
        url,
        'cannot be reached ([Errno -3] Temporary failure in name resolution)',
        'set the variable https_proxy',
        'set the variable HF_ENDPOINT to a mirror',
        f'give its path instead of the URL or put it at {cached_path(url)}',
    )
    cached_path(url).write_bytes(WEIGHTS)
    assert download(url) == cached_path(url)  # as the sentence says, by hand


NO_NAME = socket.gaierror(socket.EAI_AGAIN, 'Temporary failure in name resolution')


def test_never_from_tls_to_none():
    request = transfers.Request('https://h/x.pth')
    with pytest.raises(transfers.HTTPError, match='from https to http'):
        transfers._Redirects().redirect_request(
            request, io.BytesIO(), 302, 'Found', {}, 'http://h/x.pth'
        )


def test_certificate(server, monkeypatch):
    reason = ssl.SSLCertVerificationError(1, 'no')
    reason.verify_message = 'self-signed certificate'

    def refuse(*_):
        raise transfers.URLError(reason)

    monkeypatch.setattr(transfers, '_first_answer', refuse)
    fails('https://h/x.pth', 'not trusted (self-signed certificate)', 'SSL_CERT_FILE')


def test_proxy(server, monkeypatch):
    url = 'http://elsewhere.test/x.pth'
    monkeypatch.setenv('http_proxy', server.url)
    server.answers[url] = status(407)
    fails(url, '407 Proxy Authentication Required: set the variable https_proxy to')
    server.answers[url] = whole(WEIGHTS)
    assert download(url).read_bytes() == WEIGHTS
    monkeypatch.setenv('https_proxy', server.url)
    fails('https://h/x.pth', 'cannot be reached (Tunnel connection failed: 501')
