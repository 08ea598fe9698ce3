"""Photographs that a browser sends: their limits, and what is checked before a pixel is decoded. Nothing is written to disk."""

import io
import warnings
from pathlib import Path

from PIL import Image as Pillow
from starlette.requests import Request

from unseg.core.console import InputError
from unseg.data import examination, photos

MAX_BYTES = 50_000_000  # of a file
MAX_PIXELS = 50_000_000  # of a photograph; a larger one takes gigabytes
PICTURE = Path("the file")  # the browser's name for it is not sent


class TooLarge(InputError):
    """More bytes or pixels than a limit."""


async def read_body(request: Request, limit: int = MAX_BYTES) -> bytes:
    """The body of a request, kept in memory. Raises TooLarge as soon as it has more than `limit` bytes.

    The page sends the file itself, not a form: parsers of forms write large files to a temporary folder.
    """
    declared = request.headers.get("content-length", "")
    message = f"more than {limit / 1e6:g} MB; send a smaller file"
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise TooLarge(message)
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit:
            raise TooLarge(message)
    return bytes(body)


def open_photo(content: bytes) -> Pillow.Image:
    """A photograph as 8-bit RGB, upright. The size in its header is checked before it is decoded.

    Raises TooLarge for more than MAX_PIXELS, InputError for a file that Pillow cannot read or of odd sides.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # odd metadata
        warnings.simplefilter("error", Pillow.DecompressionBombWarning)  # icons are decoded on opening; their header may lie
        try:
            with Pillow.open(io.BytesIO(content)) as image:
                width, height = image.size
            if width * height > MAX_PIXELS:
                raise TooLarge(f"{width} x {height} pixels are more than {MAX_PIXELS / 1e6:g} megapixels; reduce the photograph")
            if reason := examination.odd_sides(height, width):
                raise InputError(f"{reason}; crop the photograph")
            return photos.open_rgb(io.BytesIO(content))
        except InputError:
            raise
        except (Pillow.DecompressionBombWarning, Pillow.DecompressionBombError):
            raise TooLarge(f"more than {MAX_PIXELS / 1e6:g} megapixels; reduce the photograph") from None
        except Exception as error:  # decoders of broken files raise any error
            raise InputError(f"{examination.explain(error, PICTURE)}; choose a photograph that Pillow reads") from None
