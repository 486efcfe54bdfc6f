"""Compiled loops of the start: scales of a graph, Louvain's moves; the same for a seed."""

import numba
import numpy as np
from numba import njit

BISECTIONS, CLOSE = 64, 1e-5  # most halvings of a row's scale, and the sum's distance from its target that ends them
PASSES = 20  # most moves of one level, per node
TIE = 1e-12  # gain below which a node stays


@njit(cache=True, nogil=True)
def scales(excess, target):
    """sigma of every row such that exp(-excess / sigma) sums to `target`, by bisection (UMAP's algorithm 3)."""
    sigma = np.ones(len(excess))
    for row in range(len(excess)):
        low, high = 0.0, np.inf
        for _ in range(BISECTIONS):
            total = 0.0
            for place in range(excess.shape[1]):
                total += np.exp(-excess[row, place] / sigma[row])
            if abs(total - target) < CLOSE:
                break
            if total > target:
                high = sigma[row]
            else:
                low = sigma[row]
            sigma[row] = 2 * sigma[row] if high == np.inf else (low + high) / 2
    return sigma


@njit(cache=True)
def degrees(indptr, data):
    """Summed edge weight of every node."""
    degree = np.zeros(len(indptr) - 1)
    for node in range(len(degree)):
        for edge in range(indptr[node], indptr[node + 1]):
            degree[node] += data[edge]
    return degree


@njit(cache=True)
def move_nodes(indptr, indices, data, degree, label, resolution, order):
    """Every node of a queue moves to the community that it gains most in, until none would; `label` changes in place.

    Node i gains w(i, c) - resolution d_i V_c / 2m in community c, without itself in V_c (Blondel et al. 2008); after a
    move its neighbors elsewhere join the queue (Traag et al. 2019).
    """
    count = len(degree)
    volume = np.zeros(count)
    for node in range(count):
        volume[label[node]] += degree[node]
    total = degree.sum()
    weight, seen = np.zeros(count), np.empty(count, np.int64)
    queue, queued = order.copy(), np.ones(count, numba.boolean)
    head, waiting, left, moved = 0, count, PASSES * count, False
    while waiting > 0 and left > 0:
        left -= 1
        node = queue[head]
        head = (head + 1) % count
        waiting -= 1
        queued[node] = False
        own, found = label[node], 1
        seen[0], weight[own] = own, TIE
        for edge in range(indptr[node], indptr[node + 1]):
            other = indices[edge]
            if other == node:
                continue
            community = label[other]
            if weight[community] == 0.0:
                seen[found] = community
                found += 1
            weight[community] += data[edge]
        volume[own] -= degree[node]
        cost = resolution * degree[node] / total
        best, most = own, weight[own] - cost * volume[own]
        for place in range(1, found):
            gain = weight[seen[place]] - cost * volume[seen[place]]
            if gain > most + TIE:
                best, most = seen[place], gain
        for place in range(found):
            weight[seen[place]] = 0.0
        volume[best] += degree[node]
        if best == own:
            continue
        label[node], moved = best, True
        for edge in range(indptr[node], indptr[node + 1]):
            other = indices[edge]
            if label[other] != best and not queued[other]:
                queued[other] = True
                queue[(head + waiting) % count] = other
                waiting += 1
    return moved


@njit(cache=True)
def renumber(label):
    """Ids 0, 1, ... in order of appearance, in place; returns how many."""
    fresh, count = np.full(label.max() + 1, -1, np.int64), 0
    for node in range(len(label)):
        if fresh[label[node]] < 0:
            fresh[label[node]] = count
            count += 1
        label[node] = fresh[label[node]]
    return count


@njit(cache=True)
def contract(indptr, indices, data, label, count):
    """The graph of `count` communities: summed weights between them, and within them on the diagonal."""
    first = np.zeros(count + 1, np.int64)
    for node in range(len(label)):
        first[label[node] + 1] += 1
    first = np.cumsum(first)
    place, member = first[:-1].copy(), np.empty(len(label), np.int64)
    for node in range(len(label)):
        member[place[label[node]]] = node
        place[label[node]] += 1
    weight, seen = np.zeros(count), np.empty(count, np.int64)
    pointer, ends, sums = np.zeros(count + 1, np.int64), np.empty(len(indices), np.int64), np.empty(len(indices))
    written = 0
    for community in range(count):
        found = 0
        for spot in range(first[community], first[community + 1]):
            for edge in range(indptr[member[spot]], indptr[member[spot] + 1]):
                other = label[indices[edge]]
                if weight[other] == 0.0:
                    seen[found] = other
                    found += 1
                weight[other] += data[edge]
        for spot in range(found):
            ends[written], sums[written] = seen[spot], weight[seen[spot]]
            weight[seen[spot]] = 0.0
            written += 1
        pointer[community + 1] = written
    return pointer, ends[:written].copy(), sums[:written].copy()


@njit(cache=True, nogil=True)
def louvain(indptr, indices, data, resolution, rounds, seed):
    """Louvain, then up to `rounds` - 1 times again from single nodes that move out of where the last round ended."""
    np.random.seed(seed)
    count = len(indptr) - 1
    label, degree = np.arange(count), degrees(indptr, data)
    for turn in range(rounds):
        moved = move_nodes(indptr, indices, data, degree, label, resolution, np.random.permutation(count))
        if turn > 0 and not moved:
            break
        groups = renumber(label)
        pointer, ends, sums = contract(indptr, indices, data, label, groups)
        while True:
            outer = np.arange(groups)
            order = np.random.permutation(groups)
            if not move_nodes(pointer, ends, sums, degrees(pointer, sums), outer, resolution, order):
                break
            groups = renumber(outer)
            for node in range(count):
                label[node] = outer[label[node]]
            pointer, ends, sums = contract(pointer, ends, sums, outer, groups)
    renumber(label)
    return label
