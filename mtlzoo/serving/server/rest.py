"""REST of the development server: HTTP on loopback, in a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from http import HTTPStatus
from io import BytesIO
from typing import TYPE_CHECKING

from aiohttp import web

from mtlzoo.serving.server.rest_routes import Answer, answer, error_answer
from pipelines import DataError

if TYPE_CHECKING:
    from mtlzoo.serving.server.core import ServerCore

HOST = "127.0.0.1"
MAX_BODY = 1 << 30

# This much of a body has to come in each `read_timeout`.
_PIECE = 1 << 16
_DRAIN_SECONDS = 1.0
# Gets what is no HTTP, with tracebacks; silent unless logging is set up.
_logger = logging.getLogger(__name__)
_logger.addHandler(logging.NullHandler())


class RestServer:
    """Serves TF Serving's REST API on 127.0.0.1.

    Requests are read on one event loop and answered in a pool of threads: a slow client holds none of them. Bodies may
    be compressed with gzip or deflate. Connections are kept alive.

    Args:
        core: Answers the requests; its `metrics` are what `metrics_path` shows.
        port: Port to listen on; 0 takes a free one.
        metrics_path: Path of the metrics in Prometheus' text format; default: none.
        read_timeout: Seconds after which a connection is cut off on which no request comes, or whose headers are not
            complete; a body is cut off, with status 408, when 64 KiB of it, or its rest, take longer.
        max_body: Bytes of the largest body, decompressed; larger ones get 413. TF Serving has no limit; the default of
            1 GiB is far beyond what a request can use, and keeps one request from taking all memory.
        threads: Requests that are answered at the same time. Default: 16, or four times the cores where that is more:
            most of them wait for a batch.

    Raises:
        DataError: The port is taken or not allowed.

    Example:
        >>> server = RestServer(core, port=0)
        >>> server.start()
        >>> requests.get(f"http://127.0.0.1:{server.port}/v1/models/ranker").json()
        >>> server.stop()

    Source: our design.
    """

    def __init__(
        self,
        core: ServerCore,
        port: int,
        metrics_path: str | None = None,
        *,
        read_timeout: float = 30.0,
        max_body: int = MAX_BODY,
        threads: int | None = None,
    ) -> None:
        self._core = core
        self._metrics_path = metrics_path
        self._read_timeout = read_timeout
        self._max_body = max_body
        try:
            self._socket = socket.create_server((HOST, port), backlog=512)
        except (OSError, OverflowError) as error:
            raise DataError(f"REST port {port}: {error}; choose another one, or 0 for a free one") from error
        self.port: int = self._socket.getsockname()[1]
        name = f"rest-{self.port}"
        self._pool = ThreadPoolExecutor(threads or max(16, 4 * (os.cpu_count() or 1)), thread_name_prefix=name)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name=name, daemon=True)
        self._started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    def start(self) -> None:
        """Starts to answer; clients that connected since the constructor are answered too."""
        self._thread.start()
        self._started.result()

    def stop(self) -> None:
        """Closes the port, gives requests that are being answered a second to end, and ends the threads."""
        if self._thread.is_alive():
            loop, stopping = self._started.result()
            loop.call_soon_threadsafe(stopping.set)
            self._thread.join()
        self._socket.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _serve(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(
            app,
            handle_signals=False,
            access_log=None,
            logger=_logger,
            keepalive_timeout=self._read_timeout,
            lingering_time=1.0,
            shutdown_timeout=_DRAIN_SECONDS,
        )
        await runner.setup()
        await web.SockSite(runner, self._socket).start()
        loop, stopping = asyncio.get_running_loop(), asyncio.Event()
        self._started.set_result((loop, stopping))
        await stopping.wait()
        # A connection that was accepted just now becomes known to the runner some turns of the loop later, and asyncio
        # loses it when its server is closed before that.
        loop.remove_reader(self._socket)
        await asyncio.sleep(0.01)
        await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.Response:
        try:
            body = await self._body(request)
        except web.RequestPayloadError as error:
            reply = error_answer(HTTPStatus.BAD_REQUEST, f"the body cannot be read: {error}")
        except TimeoutError:
            reply = error_answer(HTTPStatus.REQUEST_TIMEOUT, "the body came too slowly")
        else:
            reply = await self._answer(request, body)
        return web.Response(status=reply.status, body=reply.body, content_type=reply.content_type)

    async def _answer(self, request: web.Request, body: bytes | None) -> Answer:
        if body is None:
            return error_answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body exceeds {self._max_body} bytes")
        path = request.rel_url.raw_path
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._pool, answer, self._core, request.method, path, body, self._metrics_path
        )

    async def _body(self, request: web.Request) -> bytes | None:
        """Body of a request; `None` when it is too large.

        Raises:
            TimeoutError: It comes too slowly.
            RequestPayloadError: It is not compressed as it says, or is cut off.
        """
        if (request.content_length or 0) > self._max_body:
            return None
        # One block that grows: thousands of pieces may leave gaps in the heap, which the process then keeps.
        body = BytesIO()
        while body.tell() <= self._max_body:
            try:
                async with asyncio.timeout(self._read_timeout):
                    piece = await request.content.readexactly(_PIECE)
            except asyncio.IncompleteReadError as end:
                piece = end.partial
            body.write(piece)
            if len(piece) < _PIECE:
                break
        return body.getvalue() if body.tell() <= self._max_body else None
