"""The compiled loop of a layout; the same every time."""

import numpy as np
from numba import njit

LARGEST_MOVE = 4.0  # of one coordinate by one edge, as in UMAP
NEAR = 1e-3  # added to squared distances of repulsion, as in UMAP


@njit(cache=True, fastmath=True)
def spread(y, head, tail, period, epochs, negatives):
    """UMAP's stochastic gradient with 1 / (1 + d^2) as similarity; `y` moves in place.

    Edge e pulls both its ends in every period[e]-th epoch; each end is then repelled by `negatives` random rows.
    """
    count, width = y.shape
    state = np.uint64(88172645463325252)
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
