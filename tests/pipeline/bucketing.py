"""An S3 server on this machine that can be told to fail, and a bucket in it."""

import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from time import sleep

import pytest

from temi.cache import bucket as bucket_module


@dataclass
class Weather:
    """How requests fare: every `failing`-th gets 500 (0: none), each takes `seconds` more; `seen` holds their lines."""

    failing: int = 0
    seconds: float = 0.0
    seen: list[str] = field(default_factory=list)


@contextmanager
def serve_bucket(patch: pytest.MonkeyPatch) -> Iterator[Weather]:
    """moto's server with the bucket ``photos``, found by the standard chain, behind a proxy that makes the weather."""
    import boto3
    import s3fs
    from moto.server import ThreadedMotoServer

    s3fs.S3FileSystem.clear_instance_cache()  # connections to the server of another test

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    weather, behind = Weather(), server.get_host_and_port()
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), _handler(weather, *behind))
    Thread(target=proxy.serve_forever, daemon=True).start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.server_port}",
        "AWS_ACCESS_KEY_ID": "fleet-key",
        "AWS_SECRET_ACCESS_KEY": "fleet-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",  # what is tried again is tried by us
    }.items():
        patch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="photos")
    try:
        yield weather
    finally:
        proxy.shutdown()
        proxy.server_close()
        server.stop()


@contextmanager
def new_machine(server: Weather, kept: Path, patch: pytest.MonkeyPatch) -> Iterator[Weather]:
    """Fair weather before and after, no waiting between tries, and nothing kept on this machine but in `kept`."""
    patch.setenv("XDG_CACHE_HOME", str(kept))
    patch.setattr(bucket_module, "FIRST_WAIT", 0.01)
    _clear_up(server)
    yield server
    _clear_up(server)


def _clear_up(server: Weather) -> None:
    server.failing, server.seconds = 0, 0.0
    server.seen.clear()


def _handler(weather: Weather, host: str, port: int) -> type[BaseHTTPRequestHandler]:
    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            weather.seen.append(f"{self.command} {self.path}")
            sleep(weather.seconds)
            if weather.failing and len(weather.seen) % weather.failing == 0:
                self._answer(500, {}, b"<Error><Code>InternalError</Code><Message>try again</Message></Error>")
                return
            upstream = http.client.HTTPConnection(host, port, timeout=30)
            upstream.request(self.command, self.path, body, dict(self.headers))
            answer = upstream.getresponse()
            data = answer.read()
            upstream.close()
            self._answer(answer.status, dict(answer.getheaders()), data)

        def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
            self.send_response_only(status)
            length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(data))
            dropped = ("content-length", "transfer-encoding", "connection")
            for name, value in headers.items():
                if name.lower() not in dropped:
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = forward

        def log_message(self, *_: object) -> None:
            """Silent."""

    return Proxy
