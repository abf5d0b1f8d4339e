"""Which parts of a set begin one another, so that one pass can run them all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def find_chains(pieces: Sequence[NDArray[np.integer[Any]]]) -> list[list[int]]:
    """Return the places of ``pieces`` in chains, each piece the beginning of the next in its chain.

    Every place is in exactly one chain. Ids are compared, nothing else is trusted. To run the last
    piece of each chain is to run all of them, and no other chains have fewer tokens to run.

    >>> find_chains([np.array(piece) for piece in ([5, 6], [5], [7, 8], [5, 6, 9])])
    [[1, 0, 3], [2]]
    """
    keys = [piece.astype(np.int64, copy=False).tobytes() for piece in pieces]
    chains: list[list[int]] = []
    # In this order a piece that begins others stands right before one of them.
    for place in sorted(range(len(keys)), key=keys.__getitem__):
        if chains and keys[place].startswith(keys[chains[-1][-1]]):
            chains[-1].append(place)
        else:
            chains.append([place])
    return chains
