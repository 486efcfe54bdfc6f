"""`temi serve` answers its own page and refuses everyone else; a kill between two corrections loses none."""

import io
import json
import re
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mixtures import mixture, write_cache
from photos import PhotoRun, short
from PIL import Image
from serving import Server, serving, shown
from typer.testing import CliRunner

from temi.cli import app
from temi.pipeline.results.correct import ChangedElsewhere, correct
from temi.pipeline.results.corrections import Move, Remove, Rename, Undo
from temi.pipeline.results.corrections_file import CORRECTIONS, read_corrections
from temi.pipeline.results.export import export_table
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.results.thumbnails import Thumbnail, keep, kept_thumbnails
from temi.pipeline.runs.train import train_heads
from temi.pipeline.serve import app as module
from temi.pipeline.serve.app import ServedRun

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(photo_run: PhotoRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "run"
    shutil.copytree(photo_run.run, folder)
    return folder


@pytest.fixture(scope="module")
def server(run: Path, photo_run: PhotoRun) -> Iterator[Server]:
    with serving(run, "--backbone", photo_run.weights) as started:
        yield started


def test_the_page_and_its_pictures(server: Server) -> None:
    status, page = server.ask("")
    assert status == 200
    assert b"data-served" in page
    assert b'class="pictures"' not in page
    status, small = server.ask("thumb/3")
    assert status == 200
    assert max(Image.open(io.BytesIO(small)).size) == 128
    status, whole = server.ask("image/3")
    assert status == 200
    assert Image.open(io.BytesIO(whole)).size == (200, 120)
    status, near = server.ask("similar/3?count=4")
    assert status == 200
    assert len(json.loads(near)["images"]) == 4
    assert server.ask("views/3") == (200, b'{"views":null}')
    for count in ("0", "-1", "x", "1" + 5000 * "0"):
        assert server.ask(f"similar/3?count={count}")[0] == 400


@pytest.mark.parametrize(
    "path", ["thumb/45", "thumb/-1", "thumb/../../etc/passwd", "image/..%2f..%2fetc%2fpasswd", "x"]
)
def test_nothing_but_rows_of_the_run_is_opened(server: Server, path: str) -> None:
    assert server.ask(path)[0] == 404


def test_the_unreadable_image_has_no_row_of_assignments(server: Server, run: Path) -> None:
    rows = set(FinishedRun(run).trained["row"])
    [broken] = set(range(45)) - rows
    assert server.ask(f"thumb/{broken}")[0] == server.ask(f"image/{broken}")[0] == 404


def test_strangers_are_refused(server: Server) -> None:
    own = f"127.0.0.1:{server.port}"
    assert server.raw("/")[0] == server.raw("/wrong/")[0] == server.raw(f"/{server.token}x/thumb/3")[0] == 403
    assert server.raw(f"/../{server.token}/")[0] == 403
    assert server.ask("", host="evil.example")[0] == 403
    assert server.ask("", origin="http://evil.example")[0] == 403
    assert server.ask("", origin="null")[0] == 403
    assert server.ask("thumb/3", sec_fetch_site="cross-site")[0] == 403
    assert server.ask("", origin=f"http://{own}")[0] == 200
    body = b'{"action": "undo"}'
    assert (
        server.ask("edit?known=0", "POST", body, content_type="application/json", origin="http://evil.example")[0]
        == 403
    )
    assert server.ask("edit?known=0", "POST", body, content_type="text/plain")[0] == 415
    assert server.ask("edit")[0] == 405


def test_only_this_machine_is_listened_to(server: Server) -> None:
    with socket.socket() as other:
        other.settimeout(2)
        with pytest.raises(OSError):  # noqa: PT011 - refused or unreachable, by the system
            other.connect(
                (
                    socket.gethostbyname(socket.gethostname() or "localhost").replace("127.0.0.1", "127.0.0.2"),
                    server.port,
                )
            )


def test_what_does_not_fit_is_refused_in_a_sentence_and_changes_nothing(server: Server, run: Path) -> None:
    cases = {
        '{"action": "merge", "clusters": [0, 9]}': "cluster 9 does not exist; they are 0 to 2",
        '{"action": "move", "keys": ["no.jpg"], "to": 0}': "'no.jpg' is not in this run",
        '{"action": "undo"}': "there is nothing to undo",
        '{"action": "merge", "clusters": [1, 1]}': "cluster 1 is named twice",
        '{"action": "split", "cluster": 0, "parts": 49}': "too few for 49 parts",
        "{": "this correction: ",
    }
    for body, sentence in cases.items():
        status, answer = server.ask("edit?known=0", "POST", body.encode(), content_type="application/json")
        assert status == 400, body
        assert sentence in json.loads(answer)["error"], answer
    assert read_corrections(run) == []
    assert server.ask("edit?known=0", "POST", b" " * (9 * 2**20), content_type="application/json")[0] == 413


paths = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="#"), max_size=60)
kinds = st.sampled_from(["application/json", "image/png", "text/plain"])
requests = st.tuples(
    paths, st.sampled_from(["GET", "POST", "PUT", "DELETE"]), st.none() | st.binary(max_size=200), kinds
)


# 20 examples of 50: most of the time of a single one is hypothesis' own.
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(st.lists(requests, min_size=50, max_size=50))
def test_a_thousand_malformed_requests(server: Server, asked: list[tuple[str, str, bytes | None, str]]) -> None:
    for path, method, body, kind in asked:
        status, _ = server.ask(path, method, body, content_type=kind)
        assert status < 500, path
    assert server.process.poll() is None


def test_bytes_that_are_no_request(server: Server) -> None:
    for junk in (
        b"\x00" * 500,
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=120) as raw:
            raw.sendall(junk)
            raw.shutdown(socket.SHUT_WR)
            raw.recv(1000)
    assert server.ask("")[0] == 200


def test_twenty_clients_at_once(server: Server) -> None:
    rows = [row for row in range(40) if server.ask(f"similar/{row}")[0] == 200]
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda number: server.ask(f"image/{rows[number % len(rows)]}"), range(200)))
    assert {status for status, _ in answers} == {200}
    first = dict(zip([number % len(rows) for number in range(200)], answers, strict=True))
    assert all(first[number % len(rows)][1] == body for number, (_, body) in enumerate(answers))


@pytest.mark.long
def test_a_kill_between_two_corrections_loses_none(photo_run: PhotoRun, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(photo_run.run, run)
    with serving(run) as first:
        assert first.edit(action="rename", names={"0": "reds"})[0] == 200
        status, told = first.edit(action="split", cluster=0, parts=2)
        assert status == 200
        assert told["entries"][0]["into"] == [0, 3]
        first.process.kill()
    with serving(run) as second:
        assert second.edit(action="merge", clusters=[1, 2])[0] == 200
        moved = FinishedRun(run).trained["key"].iloc[:30].tolist()
        assert second.edit(action="move", keys=moved, to=4)[0] == 200
        assert second.edit(action="undo")[0] == 200
        assert second.edit(action="redo")[0] == 200
        page = second.ask("")[1].decode()
        assert "reds" in page
    finished = FinishedRun(run)
    assert [entry.action for entry in finished.corrections] == ["rename", "split", "merge", "move", "undo", "redo"]
    assert (finished.assignments["cluster"].iloc[:30] == 4).all()
    assert not (finished.assignments["cluster"] == 2).any()
    export_table(finished, tmp_path / "t.csv", "csv")
    assert (tmp_path / "t.csv").read_text().count(",cluster 4,") == 30
    assert (run / CORRECTIONS).read_text().count("\n") == 6


@pytest.fixture
def own(photo_run: PhotoRun, tmp_path: Path) -> Path:
    """A run that only one test corrects."""
    return Path(shutil.copytree(photo_run.run, tmp_path / "run"))


def test_who_has_not_seen_every_correction_is_refused(own: Path) -> None:
    with serving(own) as server:

        def edit(known: str, **action: Any) -> tuple[int, dict[str, Any]]:
            body = json.dumps(action).encode()
            status, answer = server.ask(f"edit?known={known}", "POST", body, content_type="application/json")
            return status, json.loads(answer)

        assert edit("0", action="rename", names={"0": "one"})[0] == 200
        correct(FinishedRun(own), [Rename(names={1: "other"})])  # temi correct, a process of its own
        before = (own / CORRECTIONS).read_bytes()
        refusal = (409, {"error": "the corrections changed elsewhere; reload the page"})
        assert edit("1", action="undo") == edit("1", action="merge", clusters=[0, 1]) == refusal
        assert edit("3", action="undo") == refusal
        for malformed in ("", "-1", "x", "1" + 5000 * "0"):
            assert edit(malformed, action="undo")[0] == 400
        status, answer = server.ask("edit", "POST", b'{"action": "undo"}', content_type="application/json")
        assert (status, b"known is the number of corrections that were seen" in answer) == (400, True)
        assert (own / CORRECTIONS).read_bytes() == before
        assert edit("2", action="undo")[0] == 200


def test_one_of_many_who_saw_the_same_is_taken(own: Path) -> None:
    served = ServedRun(FinishedRun(own))

    def note(number: int) -> bool:
        try:
            served.edit(json.dumps({"action": "note", "cluster": 0, "text": f"{number}"}).encode(), 0)
        except ChangedElsewhere:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(note, range(16))) == 1
    assert len(read_corrections(own)) == 1


def test_what_the_page_counts_is_as_the_corrections_are_by_now(own: Path) -> None:
    served = ServedRun(FinishedRun(own))
    before = shown(served.page())
    run = FinishedRun(own)
    used = sorted(before["tree"]["leaves"])
    assert shown(served.page()) == before
    correct(run, [Move(keys=run.trained["key"].iloc[:9].tolist(), to=3)])
    after, fresh = shown(served.page()), shown(ServedRun(FinishedRun(own)).page())
    assert sorted(after["tree"]["leaves"]) == [*used, 3]
    assert sorted(after["near"][3]) == used
    assert "cluster 3" in after["confusion"]["clusters"]
    assert after["confusion"]["accuracy"] != before["confusion"]["accuracy"]
    assert {name: after[name] for name in ("tree", "near", "confusion", "images")} == {
        name: fresh[name] for name in ("tree", "near", "confusion", "images")
    }
    correct(FinishedRun(own), [Undo()])
    assert {**shown(served.page()), "entries": []} == {**before, "entries": []}


def test_all_images_removed_is_a_page(own: Path) -> None:
    run = FinishedRun(own)
    correct(run, [Remove(keys=run.trained["key"].tolist())])
    assert "tree" not in shown(ServedRun(run).page())


def test_a_line_damaged_while_serving_is_a_sentence_until_it_is_mended(own: Path) -> None:
    with serving(own) as server:
        assert server.edit(action="merge", clusters=[0, 1])[0] == 200
        whole = (own / CORRECTIONS).read_text()
        (own / CORRECTIONS).write_text(whole + "garbage\n")
        status, page = server.ask("")
        assert status == 500
        assert re.match(rb"line 2 of .*corrections\.jsonl: .* correct or remove it$", page), page
        assert server.edit(action="undo")[0] == 400
        (own / CORRECTIONS).write_text(whole)
        assert server.ask("")[0] == 200
        assert "Traceback" not in complaints(server)


def test_a_run_that_was_deleted_moved_or_made_again_while_serving_takes_no_correction(
    own: Path, photo_run: PhotoRun, tmp_path: Path
) -> None:
    """A page without the corrections that were made would pass for the run, and the new run is of other clusters."""
    with serving(own) as server:
        assert server.edit(action="rename", names={"0": "reds"})[0] == 200
        own.rename(tmp_path / "away")
        sentence = f"{own} was deleted, moved or trained again since this server began"
        for other in (None, photo_run.run):
            if other:
                shutil.copytree(other, own)
            status, page = server.ask("")
            assert (status, page.decode().startswith(sentence)) == (500, True), page
            status, told = server.edit(action="undo")
            assert (status, told["error"].startswith(sentence)) == (400, True), told
            assert not list(own.glob("corrections*"))
        shutil.rmtree(own)
        (tmp_path / "away").rename(own)
        assert server.edit(action="rename", names={"1": "greens"})[0] == 200
        assert complaints(server) == ""
    assert [entry.action for entry in read_corrections(own)] == ["rename", "rename"]


def test_a_cache_that_is_gone_while_serving_is_a_sentence(tmp_path: Path) -> None:
    embedding, label = mixture(rows=60, dim=8, clusters=3)
    cache = write_cache(tmp_path / "cache", embedding, label, views=embedding[:, None])
    train_heads(cache, short("train.min_steps=20"), tmp_path / "run")
    with serving(tmp_path / "run") as server:
        assert server.ask("views/3") == (200, b'{"views":1.0}')
        shutil.rmtree(cache.folder)
        status, told = server.ask("views/3")
        assert (status, json.loads(told)["error"]) == (
            500,
            f"cannot read {cache.folder}/shard-00000.h5: no such file or folder; check the path",
        )
        assert server.ask("")[0] == 200
        assert complaints(server) == ""


def test_a_client_that_hangs_up_while_sending_is_no_error(own: Path) -> None:
    with serving(own) as server:
        for path, kind in (("edit?known=0", "application/json"), ("like", "image/png")):
            with socket.create_connection(("127.0.0.1", server.port), timeout=120) as raw:
                head = f"POST /{server.token}/{path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
                raw.sendall(f"{head}Content-Type: {kind}\r\nContent-Length: 1000\r\n\r\n{{".encode())
                time.sleep(0.5)  # the server is reading by now
        assert server.ask("")[0] == 200
        assert complaints(server) == ""


def complaints(server: Server) -> str:
    """What a server said on stderr until it was ended here."""
    server.process.terminate()
    assert server.process.stderr is not None
    return server.process.stderr.read()


def test_an_image_that_could_not_be_read_is_tried_again(own: Path, photo_run: PhotoRun, tmp_path: Path) -> None:
    photos = Path(shutil.copytree(photo_run.photos, tmp_path / "photos"))
    served = ServedRun(FinishedRun(own), str(photos))
    trained = served.run.trained
    row = int(trained["row"][trained["key"] == "red/2.jpg"].iloc[0])
    (photos / "red/2.jpg").rename(tmp_path / "away.jpg")
    assert served.thumbnail(row) == b""
    assert row not in served.made
    (tmp_path / "away.jpg").rename(photos / "red/2.jpg")
    assert served.thumbnail(row) == served.thumbnail(row) != b""
    assert row in served.made


def test_at_rest_the_server_looks_at_every_image_and_keeps_what_it_saw(
    own: Path, photo_run: PhotoRun, tmp_path: Path
) -> None:
    photos = Path(shutil.copytree(photo_run.photos, tmp_path / "photos"))
    black = io.BytesIO()
    Image.new("RGB", (200, 120)).save(black, "JPEG")
    size = (photos / "blue/3.jpg").stat().st_size
    (photos / "blue/3.jpg").write_bytes(black.getvalue().ljust(size, b"\0"))  # of another size it is another image
    other = {10**6: Thumbnail(b"of another trial")}
    keep(own, other)
    served = ServedRun(FinishedRun(own), str(photos))
    before = shown(served.page())
    assert (before["looked"], before["looking"], before["odd"]) == (0, False, {})
    served.look(Event())
    after = shown(served.page())
    place = str(after["images"]["key"].index("blue/3.jpg"))
    assert (after["looked"], after["looking"], after["odd"][place]) == (44, False, "black")
    assert {row: seen.webp for row, seen in kept_thumbnails(own).items()} == {
        row: seen.webp for row, seen in (other | served.made).items()
    }
    assert shown(ServedRun(FinishedRun(own), str(photos)).page())["odd"] == after["odd"]


def test_looking_waits_for_who_asks_ends_when_told_and_has_a_limit(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served, stop = ServedRun(FinishedRun(own)), Event()
    served.asked = time.monotonic() + 1000  # as if someone asked all the time
    looking = Thread(target=served.look, args=(stop,))
    looking.start()
    time.sleep(0.5)
    assert served.looking
    assert not served.made
    assert shown(served.page())["looking"]
    stop.set()
    looking.join(timeout=60)
    assert not looking.is_alive()
    served.asked = 0
    some = len(served.thumbnail(int(served.rows[0])))
    monkeypatch.setattr(module, "THUMBNAIL_BYTES", 3 * some)
    served.look(Event())
    assert 2 < len(served.made) < 10


@pytest.mark.long
def test_a_fresh_server_comes_to_know_every_image_and_ends_at_once(own: Path) -> None:
    with serving(own) as server:
        deadline = time.monotonic() + 120
        while shown(server.ask("")[1])["looked"] < 44 and time.monotonic() < deadline:
            time.sleep(1.5)  # who asks more often than every half a second is served first
        assert shown(server.ask("")[1])["looked"] == 44
        server.process.send_signal(signal.SIGINT)
        server.process.wait(timeout=60)
        assert server.process.stderr is not None
        assert "Traceback" not in server.process.stderr.read()


def test_commands_say_one_of_one(own: Path, photo_run: PhotoRun, tmp_path: Path) -> None:
    (tmp_path / "said.jsonl").write_text('{"action": "rename", "names": {"0": "reds"}}\n')
    corrected = CliRunner().invoke(app, ["correct", str(own), str(tmp_path / "said.jsonl")])
    assert "corrections.jsonl: 1 correction more\n" in corrected.stdout
    image = str(photo_run.photos / "red/2.jpg")
    predicted = CliRunner().invoke(app, ["predict", str(own), image, "--backbone", str(photo_run.weights)])
    assert "1 image, 0 unlike the training images" in predicted.stderr


def test_a_taken_port_is_a_sentence(server: Server, run: Path) -> None:
    done = CliRunner().invoke(app, ["serve", str(run), "--port", str(server.port)])
    assert done.exit_code == 2
    assert f"port {server.port} cannot be used" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_picture_finds_its_like_and_what_is_none_is_a_sentence(
    server: Server, run: Path, photo_run: PhotoRun
) -> None:
    keys = FinishedRun(run).trained["key"]
    status, told = server.ask("like", "POST", (photo_run.photos / "red/2.jpg").read_bytes(), content_type="image/jpeg")
    assert status == 200
    assert keys[json.loads(told)["images"][0]] == "red/2.jpg"
    assert len(json.loads(told)["images"]) == 44
    for status, sentence, asked in [
        (400, "not a JPEG", {"path": "like", "method": "POST", "body": b"x" * 99, "content_type": "image/png"}),
        (415, "a picture is image/*", {"path": "like", "method": "POST", "body": b"x", "content_type": "text/plain"}),
        (400, "no part of its cache is CLIP's", {"path": "described?text=red"}),
        (400, "describe an image in 1 to 300 characters", {"path": "described"}),
    ]:
        found, body = server.ask(**asked)
        assert (found, sentence in json.loads(body)["error"]) == (status, True), body
    assert server.ask("like")[0] == 405


def test_an_endless_picture_is_refused(server: Server) -> None:
    assert server.ask("like", "POST", b" " * (65 * 2**20), content_type="image/png")[0] == 413
