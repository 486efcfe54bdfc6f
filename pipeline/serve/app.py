"""The page of a run with a server behind it: pictures of its images, and corrections written as they are made.

The server listens on this machine only, answers nobody without the token in the address, and no page of another site:
a foreign Host is a rebound name, a foreign Origin is another site's script. It opens images by row of the run and
nothing else, so no path of a request reaches the disk.
"""

import hmac
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from threading import Event, Lock
from time import monotonic
from typing import Any

import numpy as np
import torch
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route

from temi.pipeline.errors import USER_ERRORS, UserError
from temi.pipeline.images import UnreadableImage
from temi.pipeline.report.pages import THUMBNAIL_BYTES, as_corrected, page_map, render, run_figures
from temi.pipeline.report.records import page_json
from temi.pipeline.results.correct import ChangedElsewhere, correct
from temi.pipeline.results.corrections import Correction, parse_correction, to_json
from temi.pipeline.results.find import Finder
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.results.lists import Evidence, evidence
from temi.pipeline.results.thumbnails import Thumbnail, keep, kept_thumbnails, large, oddities, thumbnail

MAX_REQUEST = 8 * 2**20  # bytes of a correction: 100,000 names of images
KEPT_BYTES = 256 * 2**20  # of thumbnails made while serving
MAX_PICTURE = 64 * 2**20  # bytes of a picture to search by
MOST_SIMILAR = 200
REST = 0.5  # seconds without a request after which nobody is waiting
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
PICTURE = {"Cache-Control": "private, max-age=3600"}  # rows of a finished run never change

Next = Callable[[Request], Awaitable[Response]]


class ServedRun:
    """A run ready to be shown: what its page needs, computed once, and its images."""

    def __init__(self, run: FinishedRun, source: str | None = None, finder: Finder | None = None) -> None:
        self.run = run
        self._trained = _stamp(run.files.model)
        self.finder = finder or Finder(run)
        self.known: Evidence = evidence(run)
        self.rows = run.trained["row"].to_numpy("int64")
        self.position = {int(row): place for place, row in enumerate(self.rows)}
        self.shown = np.arange(len(self.rows))
        self.map = page_map(run, self.known, self.shown)
        self.images, self.missing = run.images_or_reason(source)
        kept = kept_thumbnails(run.shared)
        self.made: OrderedDict[int, Thumbnail] = OrderedDict(
            (row, seen) for row, seen in kept.items() if row in self.position and seen.webp
        )
        self._kept = sum(len(seen.webp) for seen in self.made.values())
        self._making, self._editing = Lock(), Lock()
        self.asked, self.looking = monotonic(), False  # when the last request came; whether `look` is at work
        figures = run_figures(run, self.known, self.shown, self.map)
        images = replace(figures.images, near=None)  # the server is asked for them
        self._figures = replace(figures, images=images, missing=self.missing, words=self.finder.knows_words)
        self._page = self._state, self._render()

    def page(self) -> bytes:
        """The page as the corrections are by now, and what is odd about the pixels of the images seen by now."""
        with self._editing:
            self._check_is_there()
            self.run.forget_corrections()
            if self._state != self._page[0]:
                self._page = self._state, self._render()
            return self._page[1]

    @property
    def _state(self) -> tuple[tuple[Correction, ...], int, bool]:
        """What of a page changes: the corrections, how many images were looked at, and whether more will be."""
        return tuple(self.run.corrections), len(self.made), self.looking

    def _render(self) -> bytes:
        with self._making:
            seen = dict(self.made)
        if self._figures.entries != tuple(self.run.corrections):
            self._figures = as_corrected(self._figures, self.run, self.shown)
        odd = {self.position[row]: what for row, what in oddities(seen).items()}
        data = replace(self._figures, odd=odd, looked=len(seen), looking=self.looking)
        page = render("report", page_json(data), self.run.folder.resolve().name, served=True)
        return page.encode("utf-8", "backslashreplace")

    def edit(self, body: bytes, known: int) -> list[Correction]:
        """Take one correction in; the entry as written to the disk. `known`: entries that who asks has seen."""
        with self._editing:
            self._check_is_there()
            return correct(self.run, [parse_correction(body, "this correction")], known=known)

    def _check_is_there(self) -> None:
        """Raise a UserError where the run on the disk is no more the one that is shown: its corrections are others."""
        if _stamp(self.run.files.model) != self._trained:
            raise UserError(
                f"{self.run.folder} was deleted, moved or trained again since this server began: nothing is written "
                "there; put the run back, or start temi serve again"
            )

    def thumbnail(self, row: int) -> bytes:
        """A small picture, kept for the next who asks; empty where the image cannot be read now."""
        assert self.images is not None  # a page without pictures does not ask
        seen = self.made.get(row)
        if seen is None:
            seen = thumbnail(self.images, row)
            if not seen.webp:  # its disk may be back the next time
                return b""
            with self._making:
                self._kept += len(seen.webp) - len(self.made.get(row, Thumbnail()).webp)
                self.made[row] = seen
                while self._kept > KEPT_BYTES:
                    self._kept -= len(self.made.popitem(last=False)[1].webp)
        return seen.webp

    def look(self, stop: Event) -> None:
        """Make the thumbnails that nobody asked for, so that odd images are known; one by one, while nobody asks.

        In random order until those of the run take THUMBNAIL_BYTES, as in a report, and kept for the next time.
        """
        if self.images is None:
            return
        rest = [int(row) for row in np.random.default_rng(0).permutation(self.rows) if row not in self.made]
        before, self.looking = len(self.made), bool(rest)
        try:
            for row in rest:
                if self._kept > THUMBNAIL_BYTES or not self._at_rest(stop):
                    break
                self.thumbnail(row)
        finally:
            self.looking = False
        if len(self.made) > before:
            with self._making:
                made = dict(self.made)
            keep(self.run.shared, kept_thumbnails(self.run.shared) | made)  # the folder may be that of many trials

    def _at_rest(self, stop: Event) -> bool:
        """Wait until nobody asks; False if it is time to stop."""
        while (left := self.asked + REST - monotonic()) > 0 and not stop.wait(left):
            pass
        return not stop.is_set()

    def similar(self, row: int, count: int) -> list[int]:
        """Places of the images most similar to `row`."""
        return [int(place) for place in self.known.neighbor[self.position[row]][:count]]

    def views(self, row: int) -> float | None:
        """Share of the augmented views of an image that the heads put into its own cluster; None without views."""
        if not self.run.cache.views:
            return None
        views = torch.from_numpy(self.run.cache.view_embedding(row, row + 1)[0])
        cluster = self.run.model.assign(views)[0].cpu().numpy()
        return float((cluster == self.run.trained["cluster"].iloc[self.position[row]]).mean())


def _stamp(path: Path) -> tuple[int, int] | None:
    """What tells a file from another that took its place; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def build_app(served: ServedRun, token: str, hosts: set[str]) -> Starlette:
    """The application; `hosts` are the values of the header Host under which it may be reached."""

    async def page(request: Request) -> Response:
        try:
            return Response(await run_in_threadpool(served.page), media_type="text/html; charset=utf-8")
        except USER_ERRORS as error:  # corrections that someone damaged by now
            return PlainTextResponse(str(error), 500)

    async def small(request: Request) -> Response:
        webp = await run_in_threadpool(served.thumbnail, _row(request, served, pictures=True))
        return Response(webp, media_type="image/webp", headers=PICTURE) if webp else _refusal(404, "cannot be read")

    async def whole(request: Request) -> Response:
        row = _row(request, served, pictures=True)
        assert served.images is not None  # or _row would have refused
        try:
            webp = await run_in_threadpool(large, served.images, row)
        except UnreadableImage as error:
            return _refusal(404, str(error))
        return Response(webp, media_type="image/webp", headers=PICTURE)

    async def similar(request: Request) -> Response:
        asked = request.query_params.get("count", "8")
        if not (asked.isascii() and asked.isdigit() and len(asked) < 10 and 1 <= int(asked) <= MOST_SIMILAR):
            return _refusal(400, f"count goes from 1 to {MOST_SIMILAR}")
        return JSONResponse({"images": served.similar(_row(request, served), int(asked))})

    async def like(request: Request) -> Response:
        if not request.headers.get("content-type", "").startswith("image/"):
            return _refusal(415, "a picture is image/*")
        body = await _body(request, MAX_PICTURE)
        if body is None:
            return _refusal(413, f"a picture has at most {MAX_PICTURE // 2**20} MB here")
        return await _found(served.finder.like, body)

    async def described(request: Request) -> Response:
        return await _found(served.finder.described, request.query_params.get("text", ""))

    async def views(request: Request) -> Response:
        return JSONResponse({"views": await run_in_threadpool(served.views, _row(request, served))})

    async def edit(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return _refusal(415, "a correction is application/json")
        known = request.query_params.get("known", "")  # without it, one could undo what somebody else just said
        if not (known.isascii() and known.isdigit() and len(known) < 10):
            return _refusal(400, "known is the number of corrections that were seen; ask for edit?known=NUMBER")
        body = await _body(request, MAX_REQUEST)
        if body is None:
            return _refusal(413, "a correction of that size is none")
        try:
            written = await run_in_threadpool(served.edit, body, int(known))
        except ChangedElsewhere as error:
            return _refusal(409, str(error))
        except USER_ERRORS as error:
            return _refusal(400, str(error))
        return JSONResponse({"entries": [to_json(entry) for entry in written]})

    routes = [
        Route("/", page),
        Route("/thumb/{row}", small),
        Route("/image/{row}", whole),
        Route("/similar/{row}", similar),
        Route("/views/{row}", views),
        Route("/like", like, methods=["POST"]),
        Route("/described", described),
        Route("/edit", edit, methods=["POST"]),
    ]

    async def guard(request: Request, answer: Next) -> Response:
        served.asked = monotonic()
        refusal = _refused(request, token, hosts)
        response = refusal or await answer(request)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    return Starlette(
        routes=[Mount("/{token}", routes=routes)],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=guard)],
        exception_handlers={_NoSuchRow: _no_such_row, ClientDisconnect: _gone} | dict.fromkeys(USER_ERRORS, _told),
    )


async def _body(request: Request, most: int) -> bytes | None:
    """The body of a request; None where it has more than `most` bytes."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            return None
    return bytes(body)


async def _found(search: Callable[[Any], np.ndarray], asked: str | bytes) -> Response:
    """What a search finds first, or why it finds nothing."""
    try:
        places = await run_in_threadpool(search, asked)
    except (*USER_ERRORS, UnreadableImage) as error:
        return _refusal(400, str(error))
    return JSONResponse({"images": places[:MOST_SIMILAR].tolist()})


def new_token() -> str:
    """A word that nobody guesses."""
    return secrets.token_urlsafe(24)


def _refused(request: Request, token: str, hosts: set[str]) -> Response | None:
    """Why a request gets no answer: by the name it came under, the page it came from, or its token."""
    if request.headers.get("host", "") not in hosts:
        return _refusal(403, "unknown host")
    origin = request.headers.get("origin")
    if origin is not None and origin not in {f"http://{host}" for host in hosts}:
        return _refusal(403, "foreign origin")
    if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return _refusal(403, "foreign origin")
    given = request.url.path.split("/")[1] if request.url.path.count("/") else ""
    if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), token.encode()):
        return _refusal(403, "wrong token; open the address that temi serve printed")
    return None


class _NoSuchRow(Exception):
    """A request names a row that the run does not have."""


def _no_such_row(request: Request, error: Exception) -> Response:
    return _refusal(404, "no such image")


def _told(request: Request, error: Exception) -> Response:
    return _refusal(500, str(error))  # of the disk, as a cache that is gone by now


def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # nobody is left to read it


def _row(request: Request, served: ServedRun, pictures: bool = False) -> int:
    """The row that a request names, which must be one of the run's."""
    text = request.path_params["row"]
    if not (text.isascii() and text.isdigit() and len(text) < 12) or int(text) not in served.position:
        raise _NoSuchRow
    if pictures and served.images is None:
        raise _NoSuchRow
    return int(text)


def _refusal(status: int, why: str) -> Response:
    return JSONResponse({"error": why}, status_code=status)
