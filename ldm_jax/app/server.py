"""One address, one page a visitor. Nothing is written, and nothing is asked of other machines.

A body of a request may have so many bytes and no more, and says how many; what is uploaded stays in memory. Pictures go to the
page that asked for them and to no address of their own, so that no other page can have them.
"""

import asyncio
import contextlib
import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastapi
import uvicorn
from nicegui import ui
from starlette.formparsers import MultiPartParser
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse

from ldm_jax.app import page
from ldm_jax.app.pictures import Studio
from ldm_jax.app.uploads import MOST_BYTES

MOST_BODY = MOST_BYTES + 2**16  # a file, and what a form has around it
PATIENCE = 60.0  # seconds
DRAWING = "drawing"  # what threads that draw are called


def listen(host: str, port: int) -> socket.socket:
    """A socket there. OSError in one sentence where that can't be."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        why = str(error.strerror or error).split(" (while")[0]
        raise OSError(f"--host {host} --port {port}: {why}; --port 0 takes one that is free") from None


def serve(studio: Studio, folder: Path, place: socket.socket) -> None:
    """Shows the page until Ctrl-C or SIGTERM, which is raised again as KeyboardInterrupt."""
    host, port = place.getsockname()[:2]
    server = uvicorn.Server(
        uvicorn.Config(application(studio, folder, host), log_level="error", timeout_graceful_shutdown=2, access_log=False)
    )
    print(f"http://{f'[{host}]' if ':' in host else host}:{port}   (Ctrl-C ends it)", flush=True)
    try:
        with contextlib.closing(place):
            server.run(sockets=[place])
    finally:
        if any(thread.name == DRAWING for thread in threading.enumerate()):
            # a thread inside a compiled program can't be stopped, and Python can't end around it
            print("stopped while drawing", file=sys.stderr, flush=True)
            os._exit(130)
    raise KeyboardInterrupt  # not raised again by uvicorn where SIGINT was ignored before, as in the background of a script


def application(studio: Studio, folder: Path, host: str = "127.0.0.1") -> fastapi.FastAPI:
    """The ASGI application: the page at "/". `host`: where it will listen; at 127.0.0.1 it answers to the names of this machine
    alone, so that no page of a stranger can speak to it by a name of his own."""
    MultiPartParser.spool_max_size = MOST_BODY  # never a temporary file
    made = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @ui.page("/")
    def show() -> None:
        page.Page(studio, folder, in_thread)

    # a page is kept for a while where the machine is too busy to answer it: compiling takes all there is
    ui.run_with(
        made, title="ldm_jax", favicon=page.ICON, tailwind=False, show_welcome_message=False, reconnect_timeout=PATIENCE
    )
    made.add_middleware(_Bounded)
    if host == "127.0.0.1":
        made.add_middleware(TrustedHostMiddleware, allowed_hosts=[host, "localhost"])
    return made


class _Bounded:
    """Refuses requests with a body of unknown length, or a longer one than `MOST_BODY`, before any of it is read."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            length = dict(scope["headers"]).get(b"content-length", b"")
            if not length.isdigit():
                return await PlainTextResponse("say how long the body is", 411)(scope, receive, send)
            if int(length) > MOST_BODY:
                return await PlainTextResponse(f"at most {MOST_BODY} bytes", 413)(scope, receive, send)
        await self.app(scope, receive, send)


async def in_thread(function: Callable, *arguments: Any) -> Any:
    """`function(*arguments)`, in a thread that the process doesn't wait for at its end."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()

    def finish(result: Any, error: BaseException | None) -> None:
        if not future.cancelled():
            future.set_exception(error) if error else future.set_result(result)

    def work() -> None:
        result = failure = None
        try:
            result = function(*arguments)
        except Exception as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(finish, result, failure)

    threading.Thread(target=work, name=DRAWING, daemon=True).start()
    return await future
