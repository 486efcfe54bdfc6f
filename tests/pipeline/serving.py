"""The installed `temi serve` as a process of its own, and requests to it."""

import http.client
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEMI = Path(sys.executable).with_name("temi")


@dataclass(frozen=True)
class Server:
    """A running server: its process, its port, the token of its address."""

    process: subprocess.Popen[str]
    port: int
    token: str

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/{self.token}/"

    def ask(self, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        """Status and body of the answer to a path below the token; headers are named with _ for -."""
        return self.raw(f"/{self.token}/{path}", method, body, **headers)

    def raw(self, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        try:
            connection.putrequest(method, path, skip_host="host" in headers, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name.replace("_", "-"), value)
            if body is not None:
                connection.putheader("content-length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.process.wait()

    def edit(self, **action: Any) -> tuple[int, dict[str, Any]]:
        """Make a correction, as a page that was just loaded."""
        status, page = self.ask("")
        seen = len(shown(page)["entries"]) if status == 200 else 0
        body = json.dumps(action).encode()
        status, body = self.ask(f"edit?known={seen}", "POST", body, content_type="application/json")
        return status, json.loads(body)


def shown(page: bytes) -> dict[str, Any]:
    """The figures that a page shows."""
    found = re.search(rb'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    figures: dict[str, Any] = json.loads(found[1])
    return figures


@contextmanager
def serving(run: Path, *arguments: object) -> Iterator[Server]:
    """`temi serve` of `run`, until the block ends."""
    process = subprocess.Popen(
        [TEMI, "serve", run, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/([\w-]+)/", line)
        assert found, line + process.stderr.read()
        yield Server(process, int(found[1]), found[2])
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
