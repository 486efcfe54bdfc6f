"""A hub that does not answer is known within two seconds, however it does not answer."""

import socket
import threading
import time

import pytest

from temi.pipeline import network


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    network.hub_answers.cache_clear()
    monkeypatch.setattr(network, "PATIENCE", 0.5)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def ask(monkeypatch: pytest.MonkeyPatch, address: str) -> tuple[bool, float]:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setenv("no_proxy", "*")
    start = time.perf_counter()
    return network.hub_answers(), time.perf_counter() - start


def resolve_slowly(*_: object, **__: object) -> None:
    time.sleep(2)
    raise OSError("no such name")


@pytest.mark.parametrize(("status", "answers"), [(b"200 OK", True), (b"503 Busy", True)])
def test_any_answer_is_one(monkeypatch: pytest.MonkeyPatch, status: bytes, answers: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.0 " + status + b"\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        found, _ = ask(monkeypatch, f"http://127.0.0.1:{server.getsockname()[1]}")
        thread.join()
    assert found is answers


def test_silence_refusal_and_a_slow_resolver_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        found, seconds = ask(monkeypatch, address)
        assert not found
        assert seconds < 3
    network.hub_answers.cache_clear()
    assert not ask(monkeypatch, address)[0]  # nobody listens any more
    network.hub_answers.cache_clear()
    monkeypatch.setattr(network, "urlopen", resolve_slowly)
    found, seconds = ask(monkeypatch, "http://nowhere.invalid")
    assert not found
    assert seconds < 3
