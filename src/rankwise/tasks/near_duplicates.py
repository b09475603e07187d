"""Groups of texts that say nearly the same, so that no copy of a training text is scored in validation."""

import re
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array

SHINGLE = 3
"""Words per shingle."""
THRESHOLD = 0.4
"""Jaccard similarity of the shingle sets from which two texts are near-duplicates. Changing one word of a
18-word text leaves 0.7; 0.4 is a text of which about a sixth was rewritten."""

_BLOCK = 2000


def shingles(text: str) -> set[int]:
    """Hashes of the runs of `SHINGLE` words, case, digits and punctuation ignored."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    runs = [" ".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))]
    # crc32 rather than hash(): the same in every process.
    return {zlib.crc32(run.encode()) for run in runs}


def similarity(left: str, right: str) -> float:
    """Jaccard similarity of two texts' shingles, in [0, 1]."""
    a, b = shingles(left), shingles(right)
    return len(a & b) / len(a | b)


def near_duplicate_groups(texts: Sequence[str]) -> NDArray[np.intp]:
    """Group index of each text: connected components of "similarity at least `THRESHOLD`".

    Exact, not sampled: the shared shingles of all pairs are one sparse matrix product, block by block.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    table = _shingle_table(texts)
    sizes = np.asarray(table.sum(axis=1)).ravel()
    rows, columns = [], []
    transposed = table.T.tocsc()
    for start in range(0, len(texts), _BLOCK):
        shared = (table[start : start + _BLOCK] @ transposed).tocoo()
        i, j = shared.row + start, shared.col
        alike = shared.data >= THRESHOLD * (sizes[i] + sizes[j] - shared.data)
        rows.append(i[alike])
        columns.append(j[alike])
    edges = (np.concatenate(rows), np.concatenate(columns))
    graph = coo_array((np.ones(len(edges[0]), dtype=np.int8), edges), shape=(len(texts), len(texts)))
    groups: NDArray[np.intp] = connected_components(graph, directed=False)[1]
    return groups


def _shingle_table(texts: Sequence[str]) -> "csr_array":
    """Sparse 0/1 table (texts, distinct shingles that occur twice or more; plus one column for size)."""
    from scipy.sparse import csr_array

    sets = [sorted(shingles(text)) for text in texts]
    lengths = np.array([len(s) for s in sets])
    _, columns = np.unique(np.concatenate([np.array(s, dtype=np.int64) for s in sets]), return_inverse=True)
    rows = np.repeat(np.arange(len(texts)), lengths)
    return csr_array((np.ones(len(rows), dtype=np.int32), (rows, columns)), shape=(len(texts), int(columns.max()) + 1))
