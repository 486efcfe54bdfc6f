"""Compiled loops of the start: scales of a graph, Louvain's moves, UMAP's gradient, Lloyd's rounds; same for a seed."""

import numba
import numpy as np
from numba import njit

BISECTIONS, CLOSE = 64, 1e-5  # most halvings of a row's scale, and the sum's distance from its target that ends them
PASSES = 20  # most moves of one level, per node
TIE = 1e-12  # gain below which a node stays
LARGEST_MOVE = 4.0  # of one coordinate by one edge, as in UMAP
NEAR = 1e-3  # added to squared distances of repulsion, as in UMAP


@njit(cache=True)
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


@njit(cache=True)
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


@njit(cache=True, fastmath=True)
def spread(y, head, tail, period, epochs, negatives, seed):
    """UMAP's stochastic gradient with 1 / (1 + d^2) as similarity; `y` moves in place.

    Edge e pulls both its ends in every period[e]-th epoch; each end is then repelled by `negatives` random rows.
    """
    count, width = y.shape
    state = np.uint64(88172645463325252) + np.uint64(seed) * np.uint64(2654435761)
    due = period.copy()
    for epoch in range(epochs):
        rate = np.float32(1.0 - epoch / epochs)
        for edge in range(len(head)):
            if due[edge] > epoch + 1:
                continue
            due[edge] += period[edge]
            i, j = head[edge], tail[edge]
            square = np.float32(0)
            for axis in range(width):
                square += (y[i, axis] - y[j, axis]) ** 2
            pull = np.float32(-2) / (1 + square)
            for axis in range(width):
                step = rate * min(max(pull * (y[i, axis] - y[j, axis]), -LARGEST_MOVE), LARGEST_MOVE)
                y[i, axis] += step
                y[j, axis] -= step
            for draw in range(2 * negatives):
                one = i if draw < negatives else j
                state ^= state << np.uint64(13)
                state ^= state >> np.uint64(7)
                state ^= state << np.uint64(17)
                other = np.int64((state >> np.uint64(11)) % np.uint64(count))
                square = np.float32(0)
                for axis in range(width):
                    square += (y[one, axis] - y[other, axis]) ** 2
                push = np.float32(2) / ((NEAR + square) * (1 + square))
                for axis in range(width):
                    step = push * (y[one, axis] - y[other, axis])
                    y[one, axis] += rate * min(max(step, -LARGEST_MOVE), LARGEST_MOVE)


@njit(cache=True, fastmath=True)
def lloyd(x, center, rounds):
    """k-means from `center`, which moves in place; labels and inertia of the last round."""
    count, width = x.shape
    label, inertia = np.full(count, -1), 0.0
    for _ in range(rounds):
        moved, inertia = 0, 0.0
        total, rows = np.zeros((len(center), width)), np.zeros(len(center))
        for i in range(count):
            best, least = 0, np.float32(np.inf)
            for c in range(len(center)):
                square = np.float32(0)
                for axis in range(width):
                    square += (x[i, axis] - center[c, axis]) ** 2
                if square < least:
                    best, least = c, square
            moved += label[i] != best
            label[i] = best
            inertia += least
            rows[best] += 1
            for axis in range(width):
                total[best, axis] += x[i, axis]
        for c in range(len(center)):
            if rows[c] > 0:
                for axis in range(width):
                    center[c, axis] = total[c, axis] / rows[c]
        if moved == 0:
            break
    return label, inertia
