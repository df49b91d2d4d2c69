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
    # The order of positions, whatever block they are in.
    order = np.lexsort((first // blocks.shape[1], first % blocks.shape[1]))
    waiting = [int(c) for c in order if not _even(counts[c])]
    sets: list[Ids] = []
    while waiting:
        chosen = [waiting.pop(0)]
        total = counts[chosen[0]].copy()
        while not _even(total):
            # All of them together are even, so that something is left to take as long as these are not.
            apart = np.ptp(counts[waiting] + total, axis=1)
            chosen.append(waiting.pop(int(apart.argmin())))
            total += counts[chosen[-1]]
        sets.append(classes[chosen])
    return sets


def _even(counts: Ids) -> bool:
    return bool((counts == counts[0]).all())
