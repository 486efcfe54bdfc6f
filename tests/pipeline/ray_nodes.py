"""A Ray cluster of node processes on this machine, each of one core; one of them can be killed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

SMALL = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 * 2**20}
QUICK = {"health_check_failure_threshold": 10, "health_check_period_ms": 500, "health_check_initial_delay_ms": 0}


@contextmanager
def ray_nodes(patch: pytest.MonkeyPatch, count: int = 2) -> Iterator[Any]:
    """`count` nodes, the head among them; they see the environment as it is now. Skips where Ray cannot start."""
    cluster_utils = pytest.importorskip("ray.cluster_utils", reason="ray is not installed: pip install ray")
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster = cluster_utils.Cluster()
    try:
        cluster.add_node(**SMALL, _system_config=QUICK)  # a lost node is noticed within five seconds
        for _ in range(count - 1):
            cluster.add_node(**SMALL)
    except Exception as error:
        cluster.shutdown()
        pytest.skip(f"Ray cannot start nodes on this machine: {error}")
    try:
        yield cluster
    finally:
        cluster.shutdown()


def kill_node(cluster: Any) -> None:
    """Kill a node that is not the head, with all that runs on it."""
    cluster.remove_node(sorted(cluster.worker_nodes, key=lambda node: node.node_id)[0], allow_graceful=False)
