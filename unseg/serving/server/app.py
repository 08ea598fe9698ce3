"""The page of `unseg serve`: a photograph in, its segmentation out; clusters are named, coloured, merged and ignored.

| request | answer |
| --- | --- |
| GET / | the page; /page.js and /page.css belong to it |
| GET /clusters | the clusters of the model |
| POST /predict, the bytes of a photograph | its label map and confidences, and the clusters |
| POST /edit, [["name", "3=dog"], ...] | changes in the words of `unseg clusters`; the clusters after them |

Errors are {"error": one line} with status 400 or above. The server keeps no photograph, so several pages can be open: a page
sends its photograph again when an edit has changed the labels. The only file that is written is clusters.yaml, by /edit.

Another web site must not use the server through the browser of its user: the Host header must be this machine's (DNS
rebinding), the Origin of a POST must be this page, and the page may load nothing from elsewhere (Content-Security-Policy).
"""

import asyncio
import base64
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from unseg.clustering.naming import ClusterNames
from unseg.core.console import InputError
from unseg.core.label_maps import IGNORE_LABEL
from unseg.report import overlay, page, pictures
from unseg.serving.api import Prediction, Predictor, add_names
from unseg.serving.cli.parser import EDITS
from unseg.serving.server import uploads

Edits = Sequence[tuple[str, str]]  # as on the command line: ("name", "3=dog")
HOSTS = ("127.0.0.1", "localhost")
EDIT_BYTES = 100_000  # of a request: all clusters at once, with long names
EDIT_LETTERS = 200
JPEG_QUALITY = 90
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Server:
    """The model that the page asks, and the file that its edits go to.

    Args:
        model: loaded once; one photograph is predicted at a time, because the network uses all cores.
        edit: applies edits to clusters.yaml and returns its content; None: the clusters cannot be edited.
        about: texts of the page: `model`, and `file` if the clusters can be edited.
    """

    def __init__(self, model: Predictor, edit: Callable[[Edits], ClusterNames] | None, about: dict[str, str]) -> None:
        self.model, self.edit, self.about = model, edit, about
        self.predicting, self.editing = asyncio.Lock(), asyncio.Lock()

    async def get_clusters(self, _: Request) -> Response:
        return JSONResponse(self.clusters(self.model))

    async def post_photo(self, request: Request) -> Response:
        content = await uploads.read_body(request)
        async with self.predicting:
            if await request.is_disconnected():  # the user has chosen another one
                return Response(status_code=499)
            return await run_in_threadpool(self.answer, content)

    def answer(self, content: bytes) -> Response:
        model = self.model
        return JSONResponse(encode(model.predict(uploads.open_photo(content))) | self.clusters(model))

    async def post_edits(self, request: Request) -> Response:
        edits = parse_edits(await uploads.read_body(request, EDIT_BYTES))
        if self.edit is None:
            raise InputError("the clusters of this model cannot be edited; start `unseg serve` with --clusters FILE")
        async with self.editing:
            try:
                self.model = self.model.rename(await run_in_threadpool(self.edit, edits))
            except OSError as error:
                raise InputError(f"{self.about['file']} cannot be written ({error.strerror})") from None
        return JSONResponse(self.clusters(self.model))

    def clusters(self, model: Predictor) -> dict[str, Any]:
        """What the page shows of each cluster; `label` is what its pixels become: 0 background, cluster + 1, 255 ignored."""
        names, lut = model.clusters, model.clusters.label_lut().tolist()
        unedited = add_names(ClusterNames(names.count), model.net)
        rows = [
            {
                "label": lut[k + 1],
                "title": names.title(k),
                "colour": "#{:02x}{:02x}{:02x}".format(*model.colours[k + 1].tolist()),
                "edited": names.entry(k) != unedited.entry(k),
            }
            for k in range(names.count)
        ]
        return {"clusters": rows, "about": self.about, "max_bytes": uploads.MAX_BYTES}


def encode(prediction: Prediction) -> dict[str, Any]:
    """A prediction for the page: pictures of up to 1280 pixels; the areas and confidences are of the whole photograph.

    `labels` and `confidence` are uint8 [height, width] in base64; confidence is scaled to 0..255.
    """
    photo = overlay.resize(prediction.pixels)
    jpeg = cv2.imencode(".jpg", photo[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
    confidence = (255 * prediction.confidence).round().astype(np.uint8)
    maps = {"labels": prediction.labels, "confidence": confidence}
    return {
        "photo": base64.b64encode(jpeg).decode(),
        "height": photo.shape[0],
        "width": photo.shape[1],
        **{key: base64.b64encode(pictures.resize_labels(x, photo).tobytes()).decode() for key, x in maps.items()},
        "fractions": [f._asdict() for f in prediction.fractions()],
        "ignored": float((prediction.labels == IGNORE_LABEL).mean()),
    }


def parse_edits(body: bytes) -> list[tuple[str, str]]:
    """Raises InputError if it is not a list of pairs of short texts; the texts are read by `unseg clusters`."""
    try:
        rows = json.loads(body)
    except (ValueError, RecursionError):
        rows = None
    pairs = isinstance(rows, list) and all(isinstance(row, list) and len(row) == 2 for row in rows)
    texts = pairs and all(isinstance(text, str) and len(text) <= EDIT_LETTERS for row in rows for text in row)
    if not texts or not all(key in EDITS for key, _ in rows):
        raise InputError(f'edits must be like [["name", "3=dog"]], each text with at most {EDIT_LETTERS} letters')
    return [(key, text) for key, text in rows]


async def guard(request: Request, call_next: RequestResponseEndpoint) -> Response:
    """Refuse a POST of another web site; add HEADERS to all answers."""
    if request.method == "POST" and request.headers.get("origin") != f"http://{request.headers.get('host')}":
        response: Response = JSONResponse({"error": "the request does not come from the page of `unseg serve`"}, 403)
    else:
        response = await call_next(request)
    response.headers.update(HEADERS)
    return response


def failed(_: Request, error: Exception) -> Response:
    """One line for the page."""
    return JSONResponse({"error": str(error)}, 413 if isinstance(error, uploads.TooLarge) else 400)


def static(content: bytes, kind: str) -> Callable[[Request], Response]:
    return lambda _: Response(content, media_type=kind)


def create_app(server: Server) -> Starlette:
    """The ASGI application."""
    here = Path(__file__).parent
    style = Path(page.__file__).with_name("templates") / "style.css"
    files = {
        "/": static((here / "page.html").read_bytes(), "text/html"),
        "/page.js": static((here / "page.js").read_bytes(), "text/javascript"),
        "/page.css": static(style.read_bytes() + (here / "page.css").read_bytes(), "text/css"),
    }
    return Starlette(
        routes=[
            *(Route(path, endpoint) for path, endpoint in files.items()),
            Route("/clusters", server.get_clusters),
            Route("/predict", server.post_photo, methods=["POST"]),
            Route("/edit", server.post_edits, methods=["POST"]),
        ],
        middleware=[
            Middleware(BaseHTTPMiddleware, dispatch=guard),
            Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS, www_redirect=False),
        ],
        exception_handlers={InputError: failed},
    )
