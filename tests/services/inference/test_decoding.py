"""services.inference.decoding: what is decoded on the event loop is small, whatever a file says of itself."""

from __future__ import annotations

import asyncio
import io
import zlib

import numpy as np
import pytest
from PIL import Image

from contracts.errors import TooLarge
from contracts.images import ImageSpec, encode_png
from services.inference.decoding import Decoder

SPEC = ImageSpec(height=8, width=8, channels=1)
SMALL = encode_png(np.zeros((8, 8, 1), dtype=np.uint8))


def large() -> bytes:
    """A PNG of 4,000 x 4,000 in few bytes."""
    buffer = io.BytesIO()
    Image.new("1", (4000, 4000)).save(buffer, "PNG")
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)


def disguised(first: bytes) -> bytes:
    """The large PNG behind a first chunk of this kind, where a reader of fixed places finds 8 x 8."""
    return SMALL[:8] + chunk(first, SMALL[16:29]) + large()[8:]


@pytest.mark.parametrize("first", [b"IHDR", b"tIME", b"prVt"])
def test_a_large_png_that_begins_like_a_small_one_is_not_decoded_on_the_event_loop(first: bytes) -> None:
    decoder = Decoder(threads=1, max_pixels=50_000_000)
    assert len(disguised(first)) < 4096
    assert decoder.now([disguised(first)], SPEC) is None
    assert decoder.now([large()], SPEC) is None
    decoder.close()


def test_a_small_png_is_decoded_at_once() -> None:
    decoder = Decoder(threads=1, max_pixels=64)
    found = decoder.now([SMALL], SPEC)
    assert found is not None
    assert found.shape == (1, 8, 8, 1)
    decoder.close()


def test_a_small_png_of_more_pixels_than_are_allowed_is_refused() -> None:
    async def main() -> None:
        decoder = Decoder(threads=1, max_pixels=63)
        assert decoder.now([SMALL], SPEC) is None
        with pytest.raises(TooLarge, match="63"):
            await decoder.later([SMALL], SPEC, within_s=10)
        decoder.close()

    asyncio.run(main())
