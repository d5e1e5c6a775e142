"""TIFF files of any kind of pixel, written without Pillow."""

import struct

_FORMATS = {"u": 1, "i": 2, "f": 3}


def tiff(*pages, bits=0):
    """The bytes of an uncompressed TIFF.

    Args:
        pages: arrays [h, w] or [h, w, c] of one dtype.
        bits: 12 packs them, two pixels in three bytes.
    """
    out, last = bytearray(b"II*\0\0\0\0\0"), 4
    for page in pages:
        height, width, samples = (*page.shape, 1)[:3]
        data = _pack(page) if bits else page.tobytes()
        bits_each, kind = bits or 8 * page.itemsize, _FORMATS[page.dtype.kind]
        at = len(out)
        out += data + b"\0" * (len(data) % 2)
        lists = len(out)
        out += struct.pack(f"<{2 * samples}H", *[bits_each] * samples, *[kind] * samples)
        inline = samples == 1
        tags = [
            (256, 4, 1, width), (257, 4, 1, height),
            (258, 3, samples, bits_each if inline else lists), (259, 3, 1, 1),
            (262, 3, 1, 1 if inline else 2), (273, 4, 1, at), (277, 3, 1, samples),
            (278, 4, 1, height), (279, 4, 1, len(data)),
            (339, 3, samples, kind if inline else lists + 2 * samples),
        ]
        struct.pack_into("<I", out, last, len(out))
        out += struct.pack("<H", len(tags))
        out += b"".join(struct.pack("<HHII", *tag) for tag in tags)
        last = len(out)
        out += bytes(4)
    return bytes(out)


def _pack(page):
    """Rows of 12 bits a pixel, each filled up to a whole byte."""
    rows = []
    for row in page:
        text = "".join(f"{value:012b}" for value in row)
        text += "0" * (-len(text) % 8)
        rows.append(int(text, 2).to_bytes(len(text) // 8, "big"))
    return b"".join(rows)
