"""Which parts of a set begin one another, so that one pass can run them all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.integer[Any]]


def find_chains(pieces: Sequence[IntArray]) -> list[list[int]]:
    """Return the places of ``pieces`` in chains, each piece the beginning of the next in its chain.

    Every place is in exactly one chain. Ids are compared, nothing else is trusted; a piece joins
    the chain whose end is its longest beginning, which leaves the fewest tokens to run: those of
    the last piece of each chain.

    >>> find_chains([np.array(piece) for piece in ([5, 6], [5], [7, 8], [5, 6, 9])])
    [[1, 0, 3], [2]]
    """
    chains: list[list[int]] = []
    for place in sorted(range(len(pieces)), key=lambda place: len(pieces[place])):
        piece = pieces[place]
        longest_first = sorted(chains, key=lambda chain: -len(pieces[chain[-1]]))
        fitting = (chain for chain in longest_first if _begins(pieces[chain[-1]], piece))
        chain = next(fitting, None)
        if chain is None:
            chains.append([place])
        else:
            chain.append(place)
    return chains


def _begins(head: IntArray, piece: IntArray) -> bool:
    """Return whether ``piece``, which is no shorter, begins with ``head``."""
    size = len(head)
    # The last id differs most often where the beginnings of two contexts are alike.
    return not size or (bool(head[-1] == piece[size - 1]) and np.array_equal(head, piece[:size]))
