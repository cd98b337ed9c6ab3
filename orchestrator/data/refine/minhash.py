"""MinHash signatures of documents, and the bands that make similar documents meet. Pure.

Shingles are all runs of k words. The share of equal values in two signatures estimates the Jaccard similarity of their
sets of shingles without bias, with a standard error of sqrt(s(1-s)/128) (Broder 1997, "On the resemblance and
containment of documents"). Cut into bands, signatures of similar documents agree in a whole band with a known
probability (Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", 3.4).

Each value is the minimum under a hash function of its own. One-permutation hashing (Li, Owen and Zhang 2012) takes all
values from one function; but it leaves bins empty in documents of fewer than some 500 shingles, which are most, and
filling them (Shrivastava 2017) correlates the values. Measured, it would save about 10 of the 50 us that a document of
200 words costs; finding and hashing the words takes half.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from orchestrator.data.refine.words import Hashes, mix, run_hashes, word_hashes

NUM_VALUES = 128
"""Values of a signature: 512 bytes a document, and a standard error of 0.044 at most."""
Signatures = npt.NDArray[np.uint32]

_EMPTY = np.uint32(0xFFFFFFFF)
_PIECE_SHINGLES = 1024
"""So many at a time: their products, 0.5 MB, stay in the processor's cache."""
# Constants of the 128 functions, from splitmix64, so that no version of numpy changes them.
_MULTIPLIERS = (mix(np.arange(1, NUM_VALUES + 1, dtype=np.uint64)) >> np.uint64(32)).astype(np.uint32)[:, None] | 1


def shingle_hashes(words: Hashes, shingle_words: int) -> Hashes:
    """The hash of each shingle of a document, in order and with repetitions.

    A document of fewer words than a shingle has one shingle, all of its words; one without words has none.
    """
    return run_hashes(words, max(1, min(shingle_words, words.size)))


def shingle_set(text: str, shingle_words: int) -> Hashes:
    """The set of a text's shingles: hashes, sorted, each once. What `near.verify` compares."""
    return np.unique(shingle_hashes(word_hashes(text), shingle_words))


def signature(text: str, *, shingle_words: int) -> Signatures:
    """The signature of a text, [128]; one without words has none to compare (`has_shingles`)."""
    return signature_of(shingle_hashes(word_hashes(text), shingle_words))


def signature_of(shingles: Hashes) -> Signatures:
    """The signature of a document, [128], from its shingles in any order, repeated or not.

    Function i of a 64-bit hash is `high + a_i * low` modulo 2^32, a_i odd: over distinct shingles, whose hashes are
    random, each function is uniform, and two functions agree on the minimum as independent ones would.
    """
    halves = shingles.view(np.uint32).reshape(-1, 2)
    low, high = np.ascontiguousarray(halves[:, 0]), np.ascontiguousarray(halves[:, 1])
    result = np.full(NUM_VALUES, _EMPTY)
    for at in range(0, low.size, _PIECE_SHINGLES):
        values = _MULTIPLIERS * low[at : at + _PIECE_SHINGLES]
        values += high[at : at + _PIECE_SHINGLES]
        np.minimum(result, values.min(axis=1), out=result)
    return result


def has_shingles(signatures: Signatures) -> npt.NDArray[np.bool_]:
    """Whether each signature, [N, 128], is of a document with words; the others are near-duplicates of nothing."""
    some: npt.NDArray[np.bool_] = (signatures != _EMPTY).any(axis=1)
    return some


def estimate(one: Signatures, other: Signatures) -> npt.NDArray[np.float64]:
    """The estimated Jaccard similarity of signatures; the last axis is the signature's."""
    share: npt.NDArray[np.float64] = (one == other).mean(axis=-1)
    return share


def meeting_probability(similarity: float, *, bands: int, rows: int) -> float:
    """The probability that two documents of this similarity agree in all rows of at least one band."""
    return 1.0 - (1.0 - similarity**rows) ** bands


def choose_bands(similarity: float, num_values: int = NUM_VALUES, recall: float = 0.99) -> tuple[int, int]:
    """(bands, rows) that find at least this share of the pairs of this similarity, and the more of higher ones.

    Of all such, the one with most rows: the longer a band, the fewer pairs meet that are not similar. Where even one
    row a band finds fewer (below a similarity of 0.035 for 0.99 and 128 values), it is one row a band.
    """
    for rows in range(num_values, 1, -1):
        bands = num_values // rows
        if meeting_probability(similarity, bands=bands, rows=rows) >= recall:
            return bands, rows
    return num_values, 1


def band_keys(signatures: Signatures, bands: int, rows: int) -> Hashes:
    """A key for each document and band, [N, bands]: equal keys, equal values in the band.

    Keys of different bands differ, so that they may be mixed. Two different bands share a key with probability 2^-64.
    """
    if bands * rows > signatures.shape[1]:
        raise ValueError(f"{bands} bands of {rows} rows need more than {signatures.shape[1]} values")
    values = signatures[:, : bands * rows].reshape(len(signatures), bands, rows)
    keys = np.empty((len(signatures), bands), np.uint64)
    keys[:] = np.arange(1, bands + 1, dtype=np.uint64)
    for row in range(rows):
        keys = mix(keys)
        keys ^= values[:, :, row]
    return mix(keys)
