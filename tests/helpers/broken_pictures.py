"""Pictures that are broken or claim to be what they are not, as bytes."""

import io
import struct
import zlib

from PIL import Image


def png(width, height, pixels=b""):
    """A PNG whose header has this size, whatever its pixels are."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(
            ">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(
        b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def encoded(suffix, mode="RGB", size=(6, 4), **settings):
    file = io.BytesIO()
    image = Image.new("L", size).convert("P") if mode == "P" else Image.new(mode, size)
    image.save(file, suffix, **settings)  # Old versions of Pillow write a BMP without a palette.
    return file.getvalue()


def claims(suffix, size):
    """A small file whose header claims size x size pixels."""
    if suffix == "png":
        return png(size, size)
    whole = bytearray(encoded(suffix))
    if suffix == "bmp":
        whole[18:26] = struct.pack("<ii", size, size)
    elif suffix == "gif":
        whole[6:10] = struct.pack("<HH", size, size)
    else:
        at = whole.index(b"\xff\xc0") + 5  # Start of frame: marker, length, precision, then these.
        whole[at:at + 4] = struct.pack(">HH", size, size)
    return bytes(whole)


BROKEN = {
    "zero bytes": b"",
    "zeros": bytes(1000),
    "text": b"<html>404</html>",
    "half a PNG": encoded("png", size=(40, 40))[:60],
    "half a JPEG": encoded("jpeg", size=(40, 40))[:-200],
    "a PNG without pixels": png(6, 4),
    "2^31 wide": png(2**31 - 1, 1),
    "a PNG cut in its header": png(6, 4)[:20],
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n%%EndComments\n",
}
