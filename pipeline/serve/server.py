"""`temi serve`: the server process of a run's page."""

import socket
from threading import Event, Thread

from temi.pipeline.errors import UserError
from temi.pipeline.extras import import_extra
from temi.pipeline.results.finished import FinishedRun

LOOPBACK = "127.0.0.1"


def serve(run: FinishedRun, port: int = 0, source: str | None = None, backbone: str | None = None) -> None:
    """Show the page of `run` at an address that is printed, until Ctrl-C; port 0: any that is free.

    `backbone` is the folder of the encoder's weights, where they are not from a hub: for search by picture and words.

    Raises
    ------
    UserError
        The port is taken, or the extra ``serve`` is not installed.
    """
    uvicorn = import_extra("uvicorn", "serve", "temi serve")
    import_extra("starlette", "serve", "temi serve")
    from temi.pipeline.results.find import Finder
    from temi.pipeline.serve.app import ServedRun, build_app, new_token

    listening = _listen(port)
    port, token = listening.getsockname()[1], new_token()
    served = ServedRun(run, source, Finder(run, backbone))
    app = build_app(served, token, {f"{LOOPBACK}:{port}", f"localhost:{port}"})
    print(f"open http://{LOOPBACK}:{port}/{token}/ in a browser on this machine; Ctrl-C stops the server", flush=True)
    settings = uvicorn.Config(app, log_level="error", access_log=False, server_header=False, date_header=False)
    stop = Event()
    looking = Thread(target=served.look, args=(stop,), daemon=True)  # a disk that hangs holds up no end
    looking.start()
    try:
        uvicorn.Server(settings).run(sockets=[listening])
    finally:
        stop.set()
        looking.join(timeout=5)


def _listen(port: int) -> socket.socket:
    """A socket on this machine only."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((LOOPBACK, port))
        listening.listen()  # the address may be opened as soon as it is printed
    except (OSError, OverflowError) as error:
        listening.close()
        raise UserError(f"port {port} cannot be used ({error}); give another by --port, or none") from None
    return listening
