"""Work on the nodes of a Ray cluster, a piece at a time.

Ray places the workers, starts one again elsewhere when its node is lost, and has it repeat what it was doing; nothing
is sent between workers. What a node needs is there: this package, the encoder, the places that are read and written.
"""

import contextlib
import logging
import os
import select
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import Thread
from typing import Any, Self

from temi.pipeline.errors import USER_ERRORS, UserError, in_a_line, kind_and_reason
from temi.pipeline.extras import import_extra
from temi.pipeline.limits import limit_cores
from temi.pipeline.products import CHOICE, library
from temi.pipeline.progress import say

RETRIES = 3  # times that a piece is begun again after its worker was lost
LOOK = 2.0  # seconds between looks at which nodes there are
PATIENCE = 15.0  # seconds after which a person is told that no worker has a place yet
GRACE = 45.0  # seconds that the head may be away, as while it is restarted; after 60 Ray ends this process by force
OWN = ("RayletSocketName", "ObjectStoreSocketName")  # what a process has open at its node, as ``ray.nodes()`` tells
SETTINGS = b"\x04"  # kind of the frame that either side of HTTP/2, which Ray speaks, begins with
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + SETTINGS + b"\0" * 5
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}  # see pipeline/limits.py


@contextmanager
def ray_cluster(on: str) -> Iterator[None]:
    """Join the cluster that `on` names while this lasts: ``ray:ADDRESS``; or ``ray``, for that of RAY_ADDRESS, or the
    one that runs on this machine, or else one of this machine alone, begun now.

    Ray's own lines go to its logs (/tmp/ray); what they tell of nodes and workers is said by `Workers`.
    """
    engine, colon, address = on.partition(":")
    if engine != "ray" or (colon and not address):
        raise UserError(f"--on {on} is not known; give --on ray, or --on ray:HOST:PORT for the cluster at that address")
    ray = import_extra("ray", "ray", "--on ray")
    if ray.is_initialized():  # by the caller, in Python: it stays so
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS", "")
    _check_answers(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        try:
            ray.init(address or None, include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            raise UserError(_no_cluster(address, kind_and_reason(error).rstrip("."))) from None
        try:
            with _watched():
                yield
        finally:
            ray.shutdown()


@contextmanager
def _watched() -> Iterator[None]:
    """End this process with a sentence where its node or the head is lost while this lasts.

    Ray itself ends it by force then, with neither an exception nor a word, as soon as it is used again.
    """
    import ray

    here = ray.get_runtime_context()
    [node] = [node for node in ray.nodes() if node["NodeID"] == here.get_node_id()]
    over, ending = socket.socketpair()
    with ending, ExitStack() as stack:
        own = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in OWN]
        for connection, name in zip(own, OWN, strict=True):
            connection.connect(node[name])
        Thread(target=_watch, args=(stack.pop_all(), own, here.gcs_address, over), daemon=True).start()
        yield


def _watch(stack: ExitStack, own: Sequence[socket.socket], head: str, over: socket.socket) -> None:
    """Look at `own`, which close when the node ends, and whether `head` answers, until the other end of `over` closes.

    `stack` closes what is looked at.
    """
    answered, told = time.monotonic(), False
    with stack, over:
        while over not in (closed := select.select([over, *own], [], [], LOOK)[0]):
            if closed:
                _end("the Ray node of this machine is lost")
            try:
                _check_answers(head)
                answered, told = time.monotonic(), False
            except UserError:
                if not told:
                    say(f"the head of the Ray cluster, {head}, does not answer; waiting up to {GRACE:.0f} s for it")
                told = True
                if time.monotonic() - answered > GRACE:
                    _end(f"the head of the Ray cluster, {head}, is lost")


def _end(what: str) -> None:
    """The last words of this process."""
    if sys.stderr.isatty():
        sys.stderr.write("\n\x1b[?25h")  # below a bar, which hides the cursor
    say(f"temi: {what}; start the cluster again, and run the same command: it goes on from what is finished")
    os._exit(2)


def _check_answers(address: str) -> None:
    """Raise a UserError where nothing listens at HOST:PORT: Ray itself would try for many minutes."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        return
    try:
        with socket.create_connection((host.rpartition("/")[2], int(port)), timeout=PATIENCE) as connection:
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return
            connection.sendall(GREETING)
            answer = connection.recv(len(GREETING))
    except OSError as error:
        raise UserError(_no_cluster(address, error.strerror or str(error))) from None
    if answer[3:4] != SETTINGS:
        raise UserError(_no_cluster(address, "what listens there is not Ray"))


def _no_cluster(address: str, reason: str) -> str:
    where = address or "this machine"
    return f"no Ray cluster at {where} ({reason}); start one with `ray start --head`, or check --on ray:HOST:PORT"


Nodes = Sequence[dict[str, Any]]  # as ``ray.nodes()`` tells them


@dataclass(frozen=True)
class Size:
    """What a worker takes of a node."""

    cpus: int
    gpus: int

    @classmethod
    def of(cls, nodes: Nodes, *, gpus: bool) -> "Size":
        """A GPU and its share of the cores, if `gpus` are wanted and there; else all cores of the smallest node."""
        cores, cards = _resource(nodes, "CPU"), _resource(nodes, "GPU")
        if gpus and any(cards):
            return cls(min(core // card for core, card in zip(cores, cards, strict=True) if card), 1)
        return cls(min((core for core in cores if core), default=1), 0)

    def places(self, nodes: Nodes) -> int:
        """How many workers of this size `nodes` have room for."""
        return sum(_resource(nodes, "GPU")) if self.gpus else sum(core // self.cpus for core in _resource(nodes, "CPU"))


def _resource(nodes: Nodes, name: str) -> list[int]:
    return [int(node["Resources"].get(name, 0)) for node in nodes if node["Alive"]]


class Workers:
    """A worker for each place in the cluster: an object of `kind`, made there of `arguments`, alone in its process.

    Arguments are what a worker is made of again after it was lost; its methods must give the same then.
    """

    def __init__(self, kind: type, *arguments: object, gpus: bool) -> None:
        import ray

        self._ray, self._arguments, self._all = ray, arguments, list[Any]()
        self._nodes = dict[str, str]()  # address of each that lives, by its id
        self._looked = time.monotonic()
        self._size = Size.of(ray.nodes(), gpus=gpus)
        self._actor = ray.remote(kind).options(
            num_cpus=self._size.cpus,
            num_gpus=self._size.gpus,
            max_restarts=-1,
            max_task_retries=RETRIES,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": ENVIRONMENT | {CHOICE: library()}},  # all nodes multiply as this process does
        )
        if not self._more(sys.maxsize):
            raise UserError("the Ray cluster has no CPU to work on; add a node with `ray start --address HOST:PORT`")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Let all workers go."""
        for worker in list(self._all):
            self._dismiss(worker)

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._all)

    def first(self, method: str) -> Any:
        """What `method` returns on the worker that answers first; all are asked."""
        asked = [getattr(worker, method).remote() for worker in self._all]
        answered, _ = self._ray.wait(asked, timeout=PATIENCE)
        if not answered:
            say("no worker has answered yet: all places of the cluster are taken, or its nodes load slowly")
            answered, _ = self._ray.wait(asked)
        return self._get(answered[0], method)

    def deal(
        self, method: str, pieces: Mapping[str, object], *arguments: object, watch: Callable[[], None] = lambda: None
    ) -> Generator[tuple[str, Any], None, None]:
        """Call the generator `method` with each of `pieces` and `arguments` on whichever worker is free; the name of
        the piece with whatever is yielded for it, as it comes. A worker that finds nothing left to do is let go: its
        place is for one that was lost. `watch` is called every few seconds.

        Raises
        ------
        UserError
            What a worker raised; or a piece lost its worker more than RETRIES times.
        """
        waiting, idle, running = deque(pieces), list(self._all), dict[Any, tuple[Any, str, int]]()
        told, lost = Counter[str](), Counter[str]()  # by piece: answers that were passed on, workers that vanished
        while waiting or running:
            for worker in idle:
                if not waiting:
                    self._dismiss(worker)
                    continue
                name = waiting.popleft()
                call = getattr(worker, method).options(num_returns="streaming")
                running[call.remote(pieces[name], *arguments)] = worker, name, 0
            ready, idle = self._ready(list(running)), []
            if time.monotonic() - self._looked > LOOK:
                watch()
                idle = self._more(len(waiting))
            for stream in ready:
                worker, name, number = running.pop(stream)
                try:
                    answer = self._get(next(stream), name)
                except StopIteration:
                    idle.append(worker)
                    continue
                except _Unreachable:
                    lost[name] += 1
                    if lost[name] > RETRIES:
                        raise
                    self._dismiss(worker)
                    waiting.appendleft(name)
                    continue
                running[stream] = worker, name, number + 1  # behind the others: a fast worker must not hide a slow one
                if number == told[name]:  # a piece that is begun again tells the same from the start
                    told[name] += 1
                    yield name, answer

    def _ready(self, streams: list[Any]) -> list[Any]:
        """Those that have an answer, after LOOK seconds at most."""
        if not streams:  # all workers were lost
            time.sleep(LOOK)
            return []
        ready: list[Any] = self._ray.wait(streams, timeout=LOOK, fetch_local=False)[0]
        return ready

    def _dismiss(self, worker: Any) -> None:
        self._all.remove(worker)
        self._ray.kill(worker)

    def _more(self, wanted: int) -> list[Any]:
        """At most so many new workers, where nodes have room; says which nodes were lost since the last call."""
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        alive = {node["NodeID"]: str(node["NodeManagerAddress"]) for node in nodes}
        for lost in self._nodes.keys() - alive.keys():
            say(f"node {self._nodes[lost]} is lost: what was being made there is made again elsewhere")
        self._nodes, self._looked = alive, time.monotonic()
        new = min(wanted, self._size.places(nodes) - len(self._all))
        started = [self._actor.remote(*self._arguments) for _ in range(new)]
        self._all += started
        return started

    def _get(self, answer: Any, name: str) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(answer)
        except errors.RayTaskError as error:
            if isinstance(error.cause, USER_ERRORS):
                raise type(error.cause)(str(error.cause)) from None
            raise
        except errors.RayActorError as error:
            kind = _Unreachable if isinstance(error, errors.ActorUnavailableError) else UserError
            reason = in_a_line(error, 300)
            raise kind(f"{name} was given up after its worker died {RETRIES + 1} times ({reason})") from None


class _Unreachable(UserError):
    """A call failed and Ray does not repeat it: it does not know yet that the worker's node is lost."""


@contextmanager
def workers_on(on: str, kind: type, *arguments: object, gpus: bool) -> Iterator[Workers]:
    """`Workers` on the cluster that `on` names; see `ray_cluster`."""
    with ray_cluster(on), Workers(kind, *arguments, gpus=gpus) as workers:
        yield workers


Handle = Sequence[Any]
"""A value that workers fetch: in a list, as Ray would bring it along with every call."""


def hand_out(value: object) -> Handle:
    """Lay out `value` for all workers."""
    import ray

    return [ray.put(value)]


def fetch(handle: Handle) -> Any:
    """The value behind `handle`, on a worker."""
    import ray

    return ray.get(handle[0])


def node() -> str:
    """Address of the node that this worker is on."""
    import ray

    return str(ray.util.get_node_ip_address())


def not_seen(place: str) -> UserError:
    """What to say of a place that this worker's node should see."""
    return UserError(f"node {node()} does not see {place}; give a folder that all nodes share, or s3://BUCKET/NAME")


def use_own_cores() -> None:
    """Let this worker start as many threads and processes as it was given cores: its node may have more workers."""
    import ray

    limit_cores(max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))))
