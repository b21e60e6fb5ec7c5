"""Near-duplicate images: the same pixels, re-encoded, resized, mirrored or slightly cropped.

Candidates are images with nearly the same perceptual hash, or close in a coarse thumbnail or in the
embeddings. A candidate counts if one image, or a part of it, correlates with the other pixel by
pixel and edge by edge. Memory is linear in the number of images.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from supcon_tf.evaluation import retrieval
from supcon_tf.evaluation.image_prints import THUMBNAIL_PX, ImagePrints, count_bits

# Candidates of each image, by hash, by coarse thumbnail and by embedding.
NUM_CANDIDATES = 5
MAX_HASH_BITS = 8
# Cosine similarity of coarse thumbnails that a candidate needs. Crops of 90% of the side reach it.
MIN_COARSE_SIMILARITY = 0.65
# Smallest correlation of pixels and of edges. Of 2,000 photographs with planted copies, the copies
# have at least 0.97 and 0.93, and all but two of the other pairs less than 0.81 for the edges
# (benchmarks/planted_duplicates.py).
MIN_PIXEL_CORRELATION, MIN_EDGE_CORRELATION = 0.95, 0.9
# A pair must also stand out: its distance (1 - correlation of the edges) is at most this share of
# the distance at which the images of the dataset usually have their third candidate. Digits and
# icons look so alike that correlations of 0.95 are common among different images.
MAX_DISTANCE_RATIO, USUAL_RANK = 0.15, 3
# Sides of the crops to try, as fractions of the image, and their spacing in thumbnail pixels.
CROP_SIDES, CROP_SPACING_PX = (1.0, 0.95, 0.9, 0.85), 1.0
COARSE_PX, COMPARED_PX = 8, 16
# Copies of one image up to which every pair is listed; of more, each is paired with the first.
MAX_PAIRED_COPIES = 20
IMAGES_PER_BLOCK = 32


@dataclasses.dataclass(frozen=True)
class DuplicatePairs:
    """P pairs of duplicates.

    Attributes:
        first, second: int64 [P], places of the two images; first < second.
        similarities: float64 [P], correlation of the edges; 1 for the same pixels.
        is_exact: bool [P], whether all pixels are the same.
        is_mirrored: bool [P], whether one image is the mirror image of the other.
        crop_sides: float64 [P], side of the part of one image that the other shows; 1 for all.
        min_similarity: The smallest similarity that a pair needed in this dataset.
    """

    first: np.ndarray
    second: np.ndarray
    similarities: np.ndarray
    is_exact: np.ndarray
    is_mirrored: np.ndarray
    crop_sides: np.ndarray
    min_similarity: float = MIN_EDGE_CORRELATION

    def __len__(self) -> int:
        return len(self.first)

    def describe(self, index: int) -> str:
        """Says in a few words in what the images of a pair differ."""
        if self.is_exact[index]:
            return "same pixels"
        parts = ["mirrored"] if self.is_mirrored[index] else []
        if self.crop_sides[index] < 1:
            parts.append(f"crop of about {self.crop_sides[index]:.0%} of the side")
        return ", ".join(parts) or "resized, re-encoded or slightly changed"


def find_duplicates(
    prints: ImagePrints,
    embeddings: np.ndarray | None = None,
    *,
    num_candidates: int = NUM_CANDIDATES,
    min_similarity: float = MIN_EDGE_CORRELATION,
) -> DuplicatePairs:
    """Finds all pairs of duplicates among M images.

    Copies with the same pixels are compared with other images once. Blank images are only
    compared exactly, because they have nothing to correlate.

    Args:
        prints: What `print_images` returned.
        embeddings: [M, F], of any norm; their neighbors are candidates too. None for none.
        num_candidates: How many candidates to check per image and kind of neighbor.
        min_similarity: The smallest correlation of the edges of a pair. More is needed where the
            images of the dataset look alike, see `MAX_DISTANCE_RATIO`.

    Raises:
        ValueError: If there is not one embedding per image.
    """
    if embeddings is not None and len(embeddings) != len(prints):
        raise ValueError(
            f"Expected one embedding for each of the {len(prints):,} images, got "
            f"{len(embeddings):,}."
        )
    exact, representatives = _exact_pairs(prints.digests)
    compared = representatives[~prints.is_blank[representatives]]
    near, needed = _near_pairs(prints, compared, embeddings, num_candidates, min_similarity)
    num_exact = len(exact)
    pairs = np.concatenate([exact, near[0]]).reshape(-1, 2)
    order = np.lexsort([pairs[:, 1], pairs[:, 0]])
    ones = np.ones(num_exact)
    return DuplicatePairs(
        first=pairs[order, 0],
        second=pairs[order, 1],
        similarities=np.concatenate([ones, near[1]])[order],
        is_exact=(np.arange(len(pairs)) < num_exact)[order],
        is_mirrored=np.concatenate([np.zeros(num_exact, bool), near[2]])[order],
        crop_sides=np.concatenate([ones, near[3]])[order],
        min_similarity=needed,
    )


def _exact_pairs(digests):
    """Pairs of equal digests, int64 [P, 2], and the first image of each digest."""
    places: dict[bytes, list[int]] = {}
    for place, digest in enumerate(digests):
        places.setdefault(digest, []).append(place)
    pairs = []
    for copies in places.values():
        firsts = copies if len(copies) <= MAX_PAIRED_COPIES else copies[:1]
        pairs += [(one, other) for one in firsts for other in copies if other > one]
    representatives = np.array([copies[0] for copies in places.values()], np.int64)
    return np.array(pairs, np.int64).reshape(-1, 2), representatives


def _near_pairs(prints, compared, embeddings, num_candidates, min_similarity):
    """(Pairs [P, 2], edge correlations, whether mirrored, crop sides), and the threshold used."""
    if len(compared) < 2:
        empty = np.zeros([0, 2], np.int64), np.zeros(0), np.zeros(0, bool), np.zeros(0)
        return empty, min_similarity
    thumbnails = prints.thumbnails[compared]
    k = min(num_candidates, len(compared) - 1)
    candidates = [
        _hash_candidates(prints.hashes[compared], prints.mirrored_hashes[compared], k),
        _coarse_candidates(thumbnails, k),
    ]
    if embeddings is not None:
        candidates.append(_neighbor_pairs(*retrieval.nearest(embeddings[compared], None, k)))
    ordered = np.unique(np.sort(np.concatenate(candidates), axis=1), axis=0)
    ordered = ordered[ordered[:, 0] != ordered[:, 1]]
    pixels, edges, mirrored, sides = _correlations(thumbnails, ordered)
    usual = _usual_distance(ordered, 1.0 - edges, len(compared))
    needed = max(min_similarity, 1.0 - MAX_DISTANCE_RATIO * usual)
    kept = (pixels >= MIN_PIXEL_CORRELATION) & (edges >= needed)
    return (compared[ordered[kept]], edges[kept], mirrored[kept], sides[kept]), float(needed)


def _usual_distance(pairs, distances, count):
    """The median over the images of the distance to the third-nearest candidate; 1 without one."""
    images = pairs.T.reshape(-1)
    both = np.concatenate([distances, distances])
    order = np.lexsort([both, images])
    starts = np.searchsorted(images[order], np.arange(count))
    third = starts + USUAL_RANK - 1
    has_third = third < np.searchsorted(images[order], np.arange(count), side="right")
    found = np.ones(count)
    found[has_third] = both[order][third[has_third]]
    return float(np.median(found))


def _neighbor_pairs(indices, similarities, smallest=-1.0):
    """Pairs [P, 2] of each image and its neighbors that are similar enough."""
    rows = np.repeat(np.arange(len(indices)), indices.shape[1])
    pairs = np.stack([rows, indices.reshape(-1)], axis=1)
    return pairs[similarities.reshape(-1) >= smallest]


def _hash_candidates(hashes, mirrored_hashes, k):
    """The k images whose hash differs least, if by at most `MAX_HASH_BITS`."""
    pairs = []
    for start, stop in retrieval.row_blocks(len(hashes), len(hashes)):
        block = hashes[start:stop, None]
        bits = np.minimum(count_bits(block ^ hashes), count_bits(block ^ mirrored_hashes))
        bits[np.arange(stop - start), np.arange(start, stop)] = 64  # Not its own candidate.
        nearest = np.argpartition(bits, k - 1, axis=1)[:, :k]
        found = np.take_along_axis(bits, nearest, axis=1) <= MAX_HASH_BITS
        pairs.append(np.stack([np.nonzero(found)[0] + start, nearest[found]], axis=1))
    return np.concatenate(pairs)


def _coarse_candidates(thumbnails, k):
    """The k images with the most similar coarse thumbnail, unchanged or mirrored."""
    step = THUMBNAIL_PX // COARSE_PX
    shape = [len(thumbnails), COARSE_PX, step, COARSE_PX, step, 3]
    coarse = thumbnails.reshape(shape).mean(axis=(2, 4), dtype=np.float32)
    coarse -= coarse.mean(axis=(1, 2, 3), keepdims=True)
    upright = coarse.reshape(len(coarse), -1)
    mirrored = coarse[:, :, ::-1].reshape(len(coarse), -1)
    return np.concatenate(
        [
            _neighbor_pairs(*retrieval.nearest(upright, None, k), MIN_COARSE_SIMILARITY),
            # A symmetric image is its own nearest mirror image.
            _neighbor_pairs(*retrieval.nearest(mirrored, upright, k + 1), MIN_COARSE_SIMILARITY),
        ]
    )


def _correlations(thumbnails, pairs):
    """The best match of each pair over crops of either image, upright or mirrored.

    Returns:
        Correlations of pixels and of edges float64 [P], whether mirrored, and the crop's side.
    """
    directed = np.concatenate([pairs, pairs[:, ::-1]])
    results = np.zeros([4, len(directed)])
    order = np.argsort(directed[:, 0], kind="stable")
    owners, starts = np.unique(directed[order, 0], return_index=True)
    stops = np.append(starts[1:], len(order))
    for at in range(0, len(owners), IMAGES_PER_BLOCK):
        block = slice(at, at + IMAGES_PER_BLOCK)
        crops = _crops(thumbnails[owners[block]])  # [B, W, O, O, 3]
        pixels, edges = _unit(crops), _unit(_edges(crops))
        rows_of_block = order[starts[at] : stops[block][-1]]
        others, at_other = np.unique(directed[rows_of_block, 1], return_inverse=True)
        wholes = [_reduced(each) for each in (thumbnails[others], thumbnails[others][:, :, ::-1])]
        compared = [(_unit(whole), _unit(_edges(whole))) for whole in wholes]
        for place, (start, stop) in enumerate(zip(starts[block], stops[block], strict=True)):
            columns = at_other[start - starts[at] : stop - starts[at]]
            results[:, order[start:stop]] = _best_match(
                pixels[place], edges[place], [(p[columns], e[columns]) for p, e in compared]
            )
    both = results.reshape(4, 2, -1)  # As (one, other), and as (other, one).
    better = np.argmax(both[1], axis=0)
    pixels, edges, mirrored, sides = np.take_along_axis(both, better[None, None], axis=1)[:, 0]
    return pixels, edges, mirrored > 0, sides


def _best_match(pixels, edges, compared):
    """Compares the crops of one image, [W, D] and [W, E], with K whole images: [4, K].

    `compared` has the pixels [K, D] and edges [K, E] of the images, upright and mirrored.
    """
    found = []
    for is_mirrored, (other_pixels, other_edges) in enumerate(compared):
        by_edges = edges @ other_edges.T  # [W, K]
        best = np.argmax(by_edges, axis=0)
        columns = np.arange(len(best))
        by_pixels = np.sum(pixels[best] * other_pixels, axis=1)
        is_mirrored = np.full(len(best), is_mirrored)
        found.append([by_pixels, by_edges[best, columns], is_mirrored, _crop_sides()[best]])
    stacked = np.array(found, np.float64)  # [2, 4, K]
    better = np.argmax(stacked[:, 1], axis=0)
    return np.take_along_axis(stacked, better[None, None], axis=0)[0]


def _unit(images):
    """Centers the values of each image and divides them by their norm: [..., O * O * C]."""
    flat = images.reshape(*images.shape[:-3], -1)
    flat = flat - flat.mean(axis=-1, keepdims=True)
    norms = np.linalg.norm(flat, axis=-1, keepdims=True)
    return flat / np.maximum(norms, np.finfo(np.float32).tiny)


def _edges(images):
    """Differences to the next row and to the next column: [..., O - 1, O - 1, 2 * C]."""
    rows = images[..., 1:, :-1, :] - images[..., :-1, :-1, :]
    columns = images[..., :-1, 1:, :] - images[..., :-1, :-1, :]
    return np.concatenate([rows, columns], axis=-1)


def _reduced(thumbnails):
    """Thumbnails [K, T, T, 3] reduced to float32 [K, O, O, 3]."""
    step = THUMBNAIL_PX // COMPARED_PX
    shape = [len(thumbnails), COMPARED_PX, step, COMPARED_PX, step, 3]
    return thumbnails.reshape(shape).mean(axis=(2, 4), dtype=np.float32)


def _crops(thumbnails):
    """Every crop of thumbnails [B, T, T, 3], resized: float32 [B, W, O, O, 3]."""
    count, side = len(thumbnails), THUMBNAIL_PX
    rows_last = thumbnails.astype(np.float32).transpose(1, 0, 2, 3).reshape(side, -1)
    found = []
    for weights in _crop_weights():  # [U, O, T] for each side of the crop
        num, small = weights.shape[:2]
        flat = weights.reshape(-1, side)
        rows = (flat @ rows_last).reshape(num, small, count, side, 3)
        rows = rows.transpose(2, 0, 1, 4, 3).reshape(-1, side)  # [B * U * O * 3, T]
        both = (rows @ flat.T).reshape(count, num, small, 3, num, small)
        both = both.transpose(0, 1, 4, 2, 5, 3)  # [B, U, U, O, O, 3]
        found.append(both.reshape(count, num * num, small, small, 3))
    return np.concatenate(found, axis=1)


@functools.cache
def _crop_weights():
    """For each of `CROP_SIDES`, the weights that reduce its intervals: float32 [U, O, T] each."""
    found = []
    for fraction in CROP_SIDES:
        length = THUMBNAIL_PX * fraction
        free = THUMBNAIL_PX - length
        starts = np.linspace(0, free, round(free / CROP_SPACING_PX) + 1)
        found.append(np.stack([_interval_weights(start, length) for start in starts]))
    return found


def _interval_weights(start, length):
    """Averages of `COMPARED_PX` equal parts of [start, start + length): float32 [O, T]."""
    limits = start + length * np.arange(COMPARED_PX + 1) / COMPARED_PX
    cells = np.arange(THUMBNAIL_PX)
    overlap = np.minimum(limits[1:, None], cells + 1) - np.maximum(limits[:-1, None], cells)
    overlap = np.maximum(overlap, 0.0)
    return (overlap / overlap.sum(axis=1, keepdims=True)).astype(np.float32)


@functools.cache
def _crop_sides():
    """The side of each crop of `_crops`, float64 [W]."""
    counts = [len(weights) ** 2 for weights in _crop_weights()]
    return np.repeat(np.array(CROP_SIDES), counts)
