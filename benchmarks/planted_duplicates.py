"""Plants copies of photographs and measures how many the search for duplicates finds.

Copies are exact, re-encoded (JPEG quality 60), mirrored, or cropped to 90% of the side. Pairs that
were there before the planting are left out.

.venv/bin/python benchmarks/planted_duplicates.py --photographs=FOLDER
"""

from __future__ import annotations

import argparse
import io
import json
import pathlib
import sys
import time

import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "results" / "planted_duplicates.json"
KINDS = ("exact", "jpeg", "flipped", "cropped")
CROP_SIDE = 0.9
sys.path.insert(0, str(ROOT))


def plant(image, kind, rng):
    """Returns a copy of an image uint8 [H, W, 3]."""
    if kind == "jpeg":
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=60)
        return np.asarray(Image.open(file))
    if kind == "flipped":
        return image[:, ::-1]
    if kind == "cropped":
        height, width = (round(CROP_SIDE * side) for side in image.shape[:2])
        top = rng.integers(0, image.shape[0] - height + 1)
        left = rng.integers(0, image.shape[1] - width + 1)
        return image[top : top + height, left : left + width]
    return image.copy()


def measure(images, copies_per_kind, seed):
    """Returns recall per kind, precision and seconds."""
    from supcon_tf.evaluation import duplicates, image_prints

    rng = np.random.default_rng(seed)
    sources = rng.permutation(len(images))[: copies_per_kind * len(KINDS)]
    kinds = [KINDS[index % len(KINDS)] for index in range(len(sources))]
    copies = [plant(images[at], kind, rng) for at, kind in zip(sources, kinds, strict=True)]
    before = find_pairs(duplicates, image_prints, images)[0]
    found, seconds = find_pairs(duplicates, image_prints, [*images, *copies])
    # A copy of an image that had a duplicate before is a duplicate of that one too.
    original = [*range(len(images)), *sources.tolist()]
    known = before | {(one, one) for one in range(len(images))}
    wanted = {(int(at), len(images) + index) for index, at in enumerate(sources)}
    wrong = [
        pair
        for pair in found - wanted
        if tuple(sorted((original[pair[0]], original[pair[1]]))) not in known
    ]
    recalls = {}
    for kind in KINDS:
        of_kind = {pair for pair, each in zip(sorted(wanted, key=lambda pair: pair[1]), kinds,
                                              strict=True) if each == kind}  # fmt: skip
        recalls[kind] = len(of_kind & found) / len(of_kind)
    hits = len(wanted & found)
    return {
        "seed": seed,
        "images": len(images),
        "copies_per_kind": copies_per_kind,
        "recall": recalls,
        "precision": hits / (hits + len(wrong)),
        "pairs_before": len(before),
        "wrong_pairs": len(wrong),
        "seconds": round(seconds, 1),
    }


def find_pairs(duplicates, image_prints, images):
    """Returns the pairs that are found, and the seconds that it took."""
    started = time.perf_counter()
    found = duplicates.find_duplicates(image_prints.print_images(images))
    seconds = time.perf_counter() - started
    return set(zip(found.first.tolist(), found.second.tolist(), strict=True)), seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photographs", required=True, help="One folder of images per class.")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--count", type=int, default=2_000)
    parser.add_argument("--copies", type=int, default=100, help="Copies of each kind.")
    options = parser.parse_args()
    from supcon_tf.data import sources

    source = sources.load_source("folder", "train", options.photographs)
    source = sources.first_examples(source, options.count)
    images = [np.asarray(Image.open(path).convert("RGB")) for path in source.paths]
    print(f"| seed | {' | '.join(f'recall, {kind}' for kind in KINDS)} | precision | wrong pairs |"
          f" pairs before |\n|---:|{'---:|' * 7}")  # fmt: skip
    rows = []
    for seed in map(int, options.seeds.split(",")):
        rows.append(measure(images, options.copies, seed))
        row = rows[-1]
        recalls = " | ".join(f"{row['recall'][kind]:.3f}" for kind in KINDS)
        print(f"| {seed} | {recalls} | {row['precision']:.3f} | {row['wrong_pairs']} | "
              f"{row['pairs_before']} |", flush=True)  # fmt: skip
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
