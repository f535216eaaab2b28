"""A classifier over HTTP: the answers of `mcls predict`, and limits on all that a client can cause."""

import asyncio
import itertools
import json
import logging
import math
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Message
from uvicorn.protocols.http.h11_impl import H11Protocol

from mcls.errors import DataError
from mcls.inference.batching import Batcher
from mcls.inference.inputs import Sample, read_images, rows, vectors
from mcls.inference.objects import fail, table_rows, vector_rows
from mcls.inference.predict import Classifier
from mcls.inference.served import openapi, prometheus, try_page
from mcls.system.text import clean

log = logging.getLogger("mcls")

TOP = 10  # most probable classes in an answer
SAMPLES = 1_000  # in a request
JSON_BYTES = 4_000_000  # of a request in JSON, which takes thirty times as much when it is parsed
BODIES = 8  # largest requests that are held at a time
CONNECTIONS = 1_000
READERS = min(4, os.cpu_count() or 1)  # threads that decode pictures and parse tables
PICTURE_TYPES, TABLE_TYPES = ("image/", "application/octet-stream"), ("text/csv", "text/tab-separated-values")


@dataclass(frozen=True)
class Limits:
    """What a client can cause at most.

    Args:
        max_batch, max_wait, max_queue: see Batcher.
        max_body: bytes of a request.
        max_pixels: of one picture.
        timeout: seconds for a request to arrive and to be answered.
    """

    max_batch: int
    max_wait: float
    max_queue: int
    max_body: int
    max_pixels: int
    timeout: float


class Service:
    """The application: `app` is what uvicorn serves.

    Args:
        model: what answers.
        about: what GET /metadata says.
        limits: see there.
        folder: an empty one, for uploads while they are read.
    """

    def __init__(self, model: Classifier, about: dict[str, Any], limits: Limits, folder: Path) -> None:
        self.model, self.about, self.limits, self.folder = model, about, limits, folder
        self.batcher = Batcher(model.probabilities, limits.max_batch, limits.max_wait, limits.max_queue)
        self.readers = ThreadPoolExecutor(READERS, "reader")
        self.files = itertools.count()
        self.held = 0  # bytes of the requests that are being answered
        self.answers: dict[int, int] = {}  # by HTTP status
        self.seconds = 0.0  # in which they were answered
        page, schema = try_page(about), openapi(about)
        routes = [
            Route("/", lambda request: HTMLResponse(page)),
            Route("/predict", self.predict, methods=["POST"]),
            Route("/health", lambda request: JSONResponse({"status": "ok"})),
            Route("/metadata", lambda request: JSONResponse(about)),
            Route("/openapi.json", lambda request: JSONResponse(schema)),
            Route("/metrics", lambda request: PlainTextResponse(prometheus(self.answers, self.seconds, self.batcher))),
        ]
        handlers: Any = {HTTPException: refused, Exception: failed}
        self.app = Starlette(routes=routes, exception_handlers=handlers)
        self.app.router.redirect_slashes = False  # to an address that the client's Host header names

    async def predict(self, request: Request) -> Response:
        """POST /predict."""
        started, status = perf_counter(), 500
        try:
            response = await self.answer(request)
            status = response.status_code
            return response
        except HTTPException as error:
            status = error.status_code
            raise
        finally:
            self.answers[status] = self.answers.get(status, 0) + 1
            self.seconds += perf_counter() - started

    async def answer(self, request: Request) -> Response:
        """The answer to POST /predict. Raises HTTPException."""
        late = (408, "the request has not arrived")
        try:
            async with asyncio.timeout(self.limits.timeout), self.reserved(request):
                top = parse_top(request.query_params.get("top", str(TOP)))
                samples = await self.samples(self.limited(request))
                late = (503, "no answer")
                return JSONResponse({"predictions": await self.predictions(samples, top)})
        except TimeoutError as error:
            raise HTTPException(late[0], f"{late[1]} within {self.limits.timeout:g} s.") from error
        except ClientDisconnect as error:
            raise HTTPException(400, "the request was cut off.") from error
        except DataError as error:
            raise HTTPException(422, str(error)) from error

    @asynccontextmanager
    async def reserved(self, request: Request) -> AsyncIterator[None]:
        """Room for the body of a request. Raises HTTPException when it is too large, or too many are held."""
        length = request.headers.get("content-length", "")
        size = int(length) if length.isdecimal() else self.limits.max_body
        if size > self.limits.max_body:
            raise self.too_large()
        if self.held + size > BODIES * self.limits.max_body or self.batcher.full(1):
            raise busy()
        self.held += size
        try:
            yield
        finally:
            self.held -= size

    def limited(self, request: Request) -> Request:
        """The same request, whose body may be no longer than is allowed, whatever its header says."""
        size = 0

        async def receive() -> Message:
            nonlocal size
            message = await request.receive()
            size += len(message.get("body", b""))
            if size > self.limits.max_body:
                raise self.too_large()
            return message

        return Request(request.scope, receive)

    def too_large(self) -> HTTPException:
        """The answer to a request that is too long."""
        return HTTPException(413, f"the request is too large; at most {self.limits.max_body:,} bytes are read.")

    async def samples(self, request: Request) -> Iterator[Sample]:
        """Name and array of each sample in a request; they are read as they are taken. Raises HTTPException."""
        if (coding := request.headers.get("content-encoding", "identity").strip().lower()) not in ("", "identity"):
            raise HTTPException(415, f"content-encoding: got {coding[:60]!r}. Send the body as it is.")
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            async with request.form(max_files=SAMPLES) as form:
                files = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
                return self.uploads([(file.filename or "file", await file.read()) for file in files])
        body = await request.body()
        if kind == "application/json" and not self.model.image:
            if len(body) > JSON_BYTES:
                raise HTTPException(413, f"{len(body):,} bytes of JSON; at most {JSON_BYTES:,} are read. Send CSV.")
            return enumerated(await self.read(lambda: json_rows(self.model, body)))
        if kind.startswith(PICTURE_TYPES if self.model.image else TABLE_TYPES):
            return self.uploads([("body", body)])
        takes = "pictures: image/*" if self.model.image else "rows: application/json, text/csv"
        raise HTTPException(415, f"content-type: got {kind[:60]!r}. This model takes {takes}, or multipart/form-data.")

    def uploads(self, files: list[tuple[str, bytes]]) -> Iterator[Sample]:
        """Name and array of each sample in uploaded files (name, content), which are read as `mcls predict` does."""
        model = self.model
        for name, content in files:
            if content.startswith(b"\x1f\x8b"):
                raise DataError(f"{name}: compressed. Send it as it is.")
            path = self.folder / str(next(self.files))
            try:
                path.write_bytes(content)
                if model.image:
                    samples = read_images([str(path)], model.input_shape, self.limits.max_pixels, model.reading, fail)
                elif model.encoder is not None:
                    samples = rows([str(path)], model.encoder, fail)
                else:
                    samples = vectors([str(path)], model.input_shape, fail)
                for source, sample in samples:
                    yield name + source.removeprefix(str(path)), sample
            except DataError as error:
                raise DataError(str(error).replace(str(path), name)) from error
            finally:
                path.unlink(missing_ok=True)

    async def read(self, work: Callable[[], Any]) -> Any:
        """What `work` returns, called in a thread that reads."""
        return await asyncio.get_running_loop().run_in_executor(self.readers, work)

    async def predictions(self, samples: Iterator[Sample], top: int) -> list[dict[str, Any]]:
        """The answer for each sample. Raises HTTPException when there is none, too many, or the queue is full."""
        answers: list[dict[str, Any]] = []
        size = self.limits.max_batch
        while batch := await self.read(lambda: list(itertools.islice(samples, size))):
            if len(answers) + len(batch) > SAMPLES:
                raise HTTPException(413, f"more than {SAMPLES:,} samples. Send them in several requests.")
            if self.batcher.full(len(batch)):
                raise busy()
            probabilities = await self.batcher.probabilities(np.stack([sample for _, sample in batch]))
            for (name, _), row in zip(batch, probabilities, strict=True):
                order = (-row).argsort(kind="stable")[:top].tolist()
                guesses = [{"class": self.model.classes[i], "probability": float(f"{row[i]:.9g}")} for i in order]
                answers.append({"input": name, **guesses[0], "top": guesses})
            if len(batch) < size:
                break
        if not answers:
            raise HTTPException(422, "nothing to classify in the request.")
        return answers


def enumerated(arrays: Iterator[np.ndarray[Any, Any]]) -> Iterator[Sample]:
    """Arrays, called by their places."""
    return ((str(index), array) for index, array in enumerate(arrays))


def json_rows(model: Classifier, body: bytes) -> Iterator[np.ndarray[Any, Any]]:
    """Each sample in JSON text: one row or a list of rows, which are objects or lists. Raises DataError."""

    def refuse(text: str) -> None:
        raise DataError(f"inputs: {text} is not a finite number.")

    exact = model.encoder is not None  # a category may be a long number
    try:
        given = json.loads(body, parse_constant=refuse, parse_int=int if exact else parse_integer)
    except (ValueError, RecursionError) as error:  # ValueError is what UnicodeDecodeError is too
        raise DataError(f"inputs: no JSON ({str(error)[:100]}).") from error
    if not isinstance(given, list | dict) or not given:
        raise DataError("inputs: must be a row or a list of rows.")
    if isinstance(given, list) and len(given) > max(SAMPLES, math.prod(model.input_shape)):
        raise DataError(f"inputs: {len(given):,} rows; at most {SAMPLES:,} in a request.")
    if model.encoder is not None:
        return table_rows(model.encoder, given)
    return vector_rows(model.input_shape, given)


def parse_integer(text: str) -> int | float:
    """The number in `text`; as a float where numpy has no integer of that size."""
    return int(text) if len(text) < 19 else float(text)


def parse_top(text: str) -> int:
    """The number in `?top=`. Raises HTTPException."""
    if not text.isdecimal() or not int(text[:9]) > 0:
        raise HTTPException(400, f"top: must be a whole number above 0, got {text[:60]!r}.")
    return int(text[:9])


def busy() -> HTTPException:
    """The answer to a request for which there is no room."""
    return HTTPException(503, "too many requests at the moment. Try again.", {"Retry-After": "1"})


async def refused(request: Request, error: HTTPException) -> Response:
    """The answer to a request that is wrong: one line."""
    return JSONResponse({"error": clean(error.detail)}, error.status_code, error.headers)


async def failed(request: Request, error: Exception) -> Response:
    """The answer to a request on which the model failed; the error is logged on the terminal."""
    log.error(f"{request.url.path}: the model failed ({type(error).__name__}: {clean(str(error))}).")
    return JSONResponse({"error": f"the model failed ({type(error).__name__})."}, 500)


class Connection(H11Protocol):
    """Ends a connection on which for long no request was answered: a client too slow to ask, or to read the answer."""

    patience = 60.0  # seconds

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to count."""
        super().connection_made(transport)
        self.alarm = self.loop.call_later(self.patience, transport.abort)

    def on_response_complete(self) -> None:
        """Begin to count anew."""
        super().on_response_complete()
        self.alarm.cancel()
        self.alarm = self.loop.call_later(self.patience, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Count no more."""
        super().connection_lost(exc)
        self.alarm.cancel()


async def serve_until(
    stop: Callable[[], int], model: Classifier, about: dict[str, Any], limits: Limits, listening: socket.socket
) -> None:
    """Answer requests on a socket until `stop` says so; those that have come are answered first."""
    with TemporaryDirectory(prefix="mcls-") as folder:
        service = Service(model, about, limits, Path(folder))
        protocol = type("Connection", (Connection,), {"patience": 2 * limits.timeout + 5})
        server = uvicorn.Server(
            uvicorn.Config(
                service.app, http=protocol, ws="none", lifespan="off", log_config=None, access_log=False,
                server_header=False, limit_concurrency=CONNECTIONS, timeout_graceful_shutdown=math.ceil(limits.timeout),
            )
        )  # fmt: skip
        work = asyncio.create_task(service.batcher.work())
        serving = asyncio.create_task(server.serve([listening]))
        while not stop() and not serving.done():
            await asyncio.sleep(0.1)
        server.should_exit = True
        await serving
        work.cancel()
        service.readers.shutdown()
