# SPDX-License-Identifier: Apache-2.0
"""Say what a file is that is no checkpoint."""

import re

# Enough for the mark of a tar archive, and to see whether it is text.
HEAD = 512  # bytes

_STARTS = (
    (b'version https://git-lfs', 'a pointer of git-lfs; `git lfs pull` gets the file'),
    (b'\x89PNG', 'a PNG picture'),
    (b'\xff\xd8\xff', 'a JPEG picture'),
    (b'GIF8', 'a GIF picture'),
    (b'BM', 'a BMP picture'),
    (b'II*\0', 'a TIFF picture'),
    (b'MM\0*', 'a TIFF picture'),
    (b'RIFF', 'a WebP picture or a sound'),
    (b'%PDF', 'a PDF document'),
    (b'\x1f\x8b', 'a gzip archive; unpack it'),
    (b'BZh', 'a bzip2 archive; unpack it'),
    (b'\xfd7zXZ', 'an xz archive; unpack it'),
    (b'\x28\xb5\x2f\xfd', 'a zstd archive; unpack it'),
    (b"7z\xbc\xaf'\x1c", 'a 7z archive; unpack it'),
    (b'Rar!', 'a rar archive; unpack it'),
    (b'PK', 'a zip archive that torch.save did not write'),
    (b'\x89HDF', 'an HDF5 file'),
    (b'\x93NUMPY', 'a NumPy array'),
    (b'GGUF', 'a GGUF model'),
    (b'\x7fELF', 'a compiled program or library'),
    (b'#!', 'a script'),
)


def describe(head: bytes) -> str:
    """Say what a file is by its first bytes."""
    if not head:
        return 'an empty file'
    if not head.strip(b'\0'):
        return 'nothing but zeros; it was never written to its end'
    if head[257:262] == b'ustar':
        return 'a tar archive, or of a PyTorch before 0.2; unpack it'
    for start, name in _STARTS:
        if head.startswith(start):
            return name
    if re.match(rb'\x08[\x01-\x1f]\x12.pytorch|\x08[\x01-\x1f](\x12|\x3a|:)', head):
        return 'an ONNX model'
    if re.match(rb'\x80[\x02-\x05]', head):
        return 'a pickle that torch.save did not write'
    return _describe_text(head)


def _describe_text(head: bytes) -> str:
    text = head.decode('utf-8', 'ignore').lstrip('\ufeff \t\r\n')
    if re.search(r'[\0-\x08\x0e-\x1a]', text) or len(text) < len(head) // 2:
        return 'a file of an unknown format'
    if re.match(r'<(!doctype html|html|head|body|!--)', text, re.IGNORECASE):
        return 'an HTML page, as a server sends it in the place of a file'
    if text.startswith('<'):
        return 'an XML or HTML document'
    if text.startswith(('{', '[')):
        return 'a JSON text'
    return 'a text'


def is_safetensors(head: bytes) -> bool:
    """Tell whether a file starts with the length of a JSON dict, and the dict."""
    return len(head) > 8 and head[8:9] == b'{' and head[6:8] == b'\0\0'
