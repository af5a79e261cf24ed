"""Finds near duplicates by MinHash: the share of places in which two signatures agree estimates their similarity.

A shingle is a run of SHINGLE_WORDS words; the similarity of two documents is the Jaccard index of their sets of
shingles. rensa makes the signatures; 16 bits of each of its numbers are kept. Documents that agree in a whole band of
places are compared: of two with a similarity of s, 1 - (1 - s^BAND)^(SIGNATURE / BAND) are, 95 % at 0.8 and 99.9 % at
0.9. rensa's own index has all documents of a full bucket compared with each other; here each has few neighbours.
"""

import numpy as np
from rensa import RMinHash

from tokenization.checking.words import HashedWords, mix

SHINGLE_WORDS = 5
SIGNATURE = 128  # places, of 16 bits each
SEED = 1
# For 32 documents in a call, or 65,536 hashes, rensa may start threads: a process forked later would wait for them for
# ever. So documents are cut, and few pieces are signed in a call.
PIECE, AT_ONCE = 2_000, 31  # hashes; pieces
BAND = 8  # places
NEIGHBOURS = 32  # documents that each is compared with, of those with an equal band
PAIRS_AT_ONCE = 1 << 16


def signatures_of(words: HashedWords) -> np.ndarray:
    """Returns the signatures of a batch, (documents, SIGNATURE) uint16; zeros for one without a shingle."""
    shingles = words.runs(SHINGLE_WORDS)
    bounds = np.searchsorted(shingles.documents, np.arange(words.num_documents + 1))
    cuts = np.union1d(bounds, np.arange(0, len(shingles.hashes), PIECE)).astype(np.uint64)
    owners = np.searchsorted(bounds, cuts[:-1], side="right") - 1
    least = np.full((words.num_documents, SIGNATURE), 2**32 - 1, np.uint32)  # of a document's pieces
    for begin in range(0, len(owners), AT_ONCE):
        rows = cuts[begin : begin + AT_ONCE + 1]
        hashes = shingles.hashes[rows[0] : rows[-1]]
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, rows - rows[0], SIGNATURE, SEED)
        np.minimum.at(least, owners[begin : begin + AT_ONCE], np.array(matrix.to_rows(), np.uint32))
    signatures = least.astype(np.uint16)
    signatures[bounds[:-1] == bounds[1:]] = 0
    return signatures


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
