"""Blocks that must stay equally large: which channels of a grouped convolution's output go together.

Its filters are stored one after the other, so that blocks need not lose the same positions, only equally many. Tying
equal positions is one way to see to that; behind a channel shuffle it can tie everything to everything, where other
companions leave many units. So companions are chosen last, when it is known what is tied for other reasons.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["companions"]

Ids = NDArray[np.int64]


def companions(blocks: Ids) -> list[Ids]:
    """Return sets of classes to unite, so that every class of `blocks` `[g, n]` is as often in each of the `g` rows.

    Classes that are so already are in no set. In order of first position, a class takes the ones that leave the rows
    least apart; free single channels so find those at the same position of the other blocks.

    >>> import numpy as np
    >>> [s.tolist() for s in companions(np.array([[0, 1, 2], [3, 4, 2]]))]
    [[0, 3], [1, 4]]
    """
    classes, first, places = np.unique(blocks, return_index=True, return_inverse=True)
    counts = np.zeros((len(classes), len(blocks)), np.int64)
    np.add.at(counts, (places.reshape(-1), np.repeat(np.arange(len(blocks)), blocks.shape[1])), 1)
    # The order of positions, whatever block they are in. Classes with the same counts wait in one queue.
    order = np.lexsort((first // blocks.shape[1], first % blocks.shape[1]))
    kinds, kind_of = np.unique(counts, axis=0, return_inverse=True)
    queues: list[list[int]] = [[] for _ in kinds]
    for rank in range(len(order))[::-1]:
        if not _even(counts[order[rank]]):
            queues[kind_of.reshape(-1)[order[rank]]].append(rank)
    sets: list[Ids] = []
    while any(queues):
        chosen: list[int] = []
        total = np.zeros(len(blocks), np.int64)
        while not chosen or not _even(total):
            # All of them together are even, so that something is left to take as long as these are not.
            heads = np.array([queue[-1] if queue else len(order) for queue in queues])
            apart = np.where(heads < len(order), np.ptp(kinds + total, axis=1), np.iinfo(np.int64).max)
            kind = int(heads.argmin() if not chosen else np.lexsort((heads, apart))[0])
            chosen.append(queues[kind].pop())
            total += kinds[kind]
        sets.append(classes[order[chosen]])
    return sets


def _even(counts: Ids) -> bool:
    return bool((counts == counts[0]).all())
