"""Near duplicates by MinHash: signatures that agree in as large a share as two documents' shingles do.

A shingle is a run of SHINGLE_WORDS words; the similarity of two documents is the Jaccard index of their sets of
shingles. One hash of each shingle is enough: its first bits choose one of SIGNATURE places, where the least of the rest
stays (one permutation hashing; Li, Owen, Zhang 2012). A place without shingles borrows from the next one that has some
(Shrivastava, Li 2014). Documents that agree in a whole band of places are compared: of two with a similarity of s,
1 - (1 - s^BAND)^(SIGNATURE / BAND) are, 95 % at 0.8 and 99.9 % at 0.9.
"""

import numpy as np

from tokenization.checking.words import BASE, HashedWords, mix

SHINGLE_WORDS = 5
SIGNATURE = 128  # places, of 16 bits each
BAND = 8  # places
NEIGHBOURS = 32  # documents that each is compared with, of those with an equal band
PAIRS_AT_ONCE = 1 << 16
_SHIFT = np.uint64(64 - SIGNATURE.bit_length() + 1)
_EMPTY = np.uint64(2**64 - 1)


def signatures_of(words: HashedWords) -> np.ndarray:
    """Returns the signatures of a batch, (documents, SIGNATURE) uint16; zeros for one without a shingle."""
    shingles = words.runs(SHINGLE_WORDS)
    least = np.full((words.num_documents, SIGNATURE), _EMPTY)
    places = shingles.documents * SIGNATURE + (shingles.hashes >> _SHIFT).astype(np.int64)
    np.minimum.at(least.reshape(-1), places, shingles.hashes)
    own, some = least, (least != _EMPTY).any(axis=1)
    for distance in range(1, SIGNATURE):
        empty = (least == _EMPTY) & some[:, None]
        if not empty.any():
            break
        lent = np.roll(own, -distance, axis=1)
        least = np.where(empty & (lent != _EMPTY), mix(lent + np.uint64(BASE * distance % 2**64)), least)
    return np.where(some[:, None], mix(least), 0).astype(np.uint16)


def near_pairs(signatures: np.ndarray, similarity: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pairs of documents whose signatures agree in this share at least, the earlier one of each first.

    signatures: (documents, SIGNATURE). The pairs are sorted.
    """
    candidates = [np.empty(0, np.int64)]
    compared = np.flatnonzero(signatures.any(axis=1))
    for begin in range(0, SIGNATURE, BAND):
        halves = np.ascontiguousarray(signatures[compared, begin : begin + BAND]).view(np.uint64)
        keys = mix(halves[:, 0]) ^ halves[:, 1]
        order = np.argsort(keys, kind="stable")
        keys, order = keys[order], compared[order]
        for distance in range(1, NEIGHBOURS + 1):
            equal = np.flatnonzero(keys[distance:] == keys[:-distance])
            if not len(equal):
                break
            candidates.append(order[equal] * len(signatures) + order[equal + distance])
    pairs = np.unique(np.concatenate(candidates))
    near = [np.empty(0, bool)]
    for begin in range(0, len(pairs), PAIRS_AT_ONCE):
        earlier, later = np.divmod(pairs[begin : begin + PAIRS_AT_ONCE], len(signatures))
        near.append((signatures[earlier] == signatures[later]).mean(axis=1) >= similarity)
    found = pairs[np.concatenate(near)]
    return found // max(len(signatures), 1), found % max(len(signatures), 1)
