"""Groups of pictures that show the same thing, found from the images themselves.

Two pictures are of one group if

- they are *copies*: one is the other, turned by quarters, mirrored, or of another brightness;
- or they are *exposures*: their names are near (exp1_num_45028 and exp2_num_45084), and in place
  and detail they are more alike than either is to any picture from elsewhere in the data.

Whoever draws a split keeps groups together (datasets.splits): else it holds pictures that are
trained on. No label and no mask is looked at.
"""

import csv
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from sklearn.decomposition import PCA

from datasets.files import read_image, write_csv
from datasets.record import Record
from execution.progress import progress

AUTO, NONE = "auto", "none"
SIDE = 48  # pixels, of the thumbnails
COARSE = SIDE // 2
BAND = 4.0  # sigma in thumbnail pixels: detail is what is finer, divided by its local deviation
# On NEU-Seg's training images the copies correlate by .9954 or more, other pairs by .990 or less;
# the detail of copies by .94 or more.
COPY, COPY_DETAIL = 0.995, 0.9
# Squared length of the mean detail, from which pictures are aligned: NEU-Seg 0.001, MTD 0.12, ball
# screws in a fixed view 0.85. Their mean and first principal components are what all show.
ALIGNED, COMMON_PARTS, MAX_FITTED = 0.3, 8, 1000
# On MTD 96 % of the pairs of one defect (same class, masks overlap) become exposures of one group,
# and the largest group has 12 pictures; a tile has up to 6 exposures.
EXPOSURE = 0.5  # least correlation of detail
NEAR_RANKS = 12  # neighbours in the order of names that exposures are sought among
NEAR_GAPS = 50  # numbers may differ by so many median gaps
FAR = 3  # times as far away, a picture is from elsewhere
EXPOSED_SHARE = 0.1  # of the images have an exposure, or names mean nothing: NEU-Seg 0.02, MTD 0.96
MIN_FAR = 50  # pictures from elsewhere that show what is alike by chance
ROWS = 256  # of a matrix of all pairs, at a time


def with_groups(records: Sequence[Record], rule: str, cache_path: Path) -> list[Record]:
    """Return records that know their group.

    Args:
        records: all of a data set, so that groups reach across splits. Where a table has named
            groups, these stay.
        rule: auto (from the images); none (each image is a group of its own); or a regular
            expression, whose groups, else whole match, in a name name the group.
        cache_path: groups.csv of the run, used where it fits the images, else written.

    Raises:
        ValueError: a regular expression that is none, or matches no name.
    """
    if rule == NONE or any(record.group != record.name for record in records):
        return list(records)
    if rule != AUTO:
        return _by_names(records, rule)
    sizes = [record.image.stat().st_size if record.image.is_file() else 0 for record in records]
    keys = [(record.name, str(size)) for record, size in zip(records, sizes, strict=True)]
    cached = _read_cache(cache_path)
    if cached.keys() != set(keys):
        groups = find_groups([record.image for record in records], [r.name for r in records])
        named = {i: min(records[j].name for j in group) for group in groups for i in group}
        cached = {key: named[i] for i, key in enumerate(keys)}
        rows = [(name, size, cached[name, size]) for name, size in sorted(keys)]
        write_csv(cache_path, [("name", "bytes", "group"), *rows])
    return [replace(r, group=cached[key]) for r, key in zip(records, keys, strict=True)]


def find_groups(paths: Sequence[Path], names: Sequence[str]) -> list[list[int]]:
    """Find copies and exposures; takes seconds for 5,000 images, and about 50 kB an image.

    Args:
        paths: picture files; one that cannot be read is a group of its own.
        names: of the pictures, as many.

    Returns:
        Indices into `paths`, each once, in groups.
    """
    if not paths:
        return []
    with ThreadPoolExecutor() as pool:
        shown = progress(pool.map(_thumbnail, paths), "finding copies", len(paths))
        thumbnails = np.stack([*shown])
    detail = np.stack([_detail(t.astype(np.float32)) for t in thumbnails])
    pairs = [*find_copies(thumbnails, detail), *find_exposures(detail, names)]
    return connected(len(paths), pairs)


def find_copies(thumbnails: np.ndarray, detail: np.ndarray) -> list[tuple[int, int]]:
    """Find pairs that are copies under the eight turns and flips.

    Args:
        thumbnails: (N, SIDE, SIDE) grey.
        detail: the same of `_detail`.
    """
    small = thumbnails.astype(np.float32)
    small = small.reshape(len(small), COARSE, 2, COARSE, 2).mean(axis=(2, 4))
    small = _unit(small - small.mean(axis=(1, 2), keepdims=True))
    detail = without_common(detail.astype(np.float32))
    flat, flat_detail = small.reshape(len(small), -1), detail.reshape(len(detail), -1)
    pairs = set()
    for turned, turned_detail in zip(_versions(small), _versions(detail), strict=True):
        turned = turned.reshape(len(turned), -1)
        turned_detail = turned_detail.reshape(len(turned), -1)
        for start in range(0, len(flat), ROWS):
            block = slice(start, start + ROWS)
            first, second = np.nonzero(flat[block] @ turned.T >= COPY)
            first += start
            later = first < second
            for i, j in _parts(np.stack([first[later], second[later]], axis=1)):
                fine = np.einsum("nd,nd->n", flat_detail[i], turned_detail[j])
                is_copy = fine >= COPY_DETAIL
                pairs.update(zip(i[is_copy].tolist(), j[is_copy].tolist(), strict=True))
    return sorted(pairs)


def without_common(detail: np.ndarray) -> np.ndarray:
    """Return detail without what all pictures show, where they are aligned: parts in one pose.

    Those are alike without being copies. What is left of a copy is alike still.

    Args:
        detail: (N, SIDE, SIDE) float32 of `_detail`.
    """
    flat = detail.reshape(len(detail), -1)
    mean = flat.mean(axis=0, keepdims=True)
    if len(flat) < MIN_FAR or (mean**2).sum() < ALIGNED:
        return detail
    sample = flat[:: -(-len(flat) // MAX_FITTED)]
    parts = PCA(COMMON_PARTS, svd_solver="randomized", random_state=0).fit(sample).components_
    basis, _ = np.linalg.qr(np.concatenate([mean, parts]).T)  # (D, COMMON_PARTS + 1)
    return _unit((flat - flat @ basis @ basis.T).reshape(detail.shape))


def find_exposures(detail: np.ndarray, names: Sequence[str]) -> list[tuple[int, int]]:
    """Find pairs of near names that are more alike than either is to any picture from elsewhere.

    Args:
        detail: (N, SIDE, SIDE) of `_detail`, of length 1.
        names: N.

    Returns:
        No pair where fewer than `EXPOSED_SHARE` of the pictures have one: names that follow each
        other do not mean one part there.
    """
    ranks, numbers, gap = _places(names)
    flat = detail.reshape(len(detail), -1).astype(np.float32)
    near_pairs, highest = [], np.zeros(len(flat), np.float32)  # of pictures from elsewhere
    for start in range(0, len(flat), ROWS):
        block = slice(start, start + ROWS)
        alike = flat[block] @ flat.T
        steps = np.abs(ranks[block, None] - ranks)
        apart = np.abs(numbers[block, None] - numbers) / gap
        is_far = (steps > FAR * NEAR_RANKS) | (apart > FAR * NEAR_GAPS)
        enough = is_far.sum(axis=1) >= MIN_FAR
        highest[block] = np.where(enough, np.where(is_far, alike, -1).max(axis=1, initial=-1), 1)
        near = (steps <= NEAR_RANKS) & (apart <= NEAR_GAPS) & (alike >= EXPOSURE)
        first, second = np.nonzero(near)
        values = alike[first, second]
        near_pairs += zip((first + start).tolist(), second.tolist(), values.tolist(), strict=True)
    pairs = [(i, j) for i, j, value in near_pairs if i < j and value > max(highest[i], highest[j])]
    exposed = {i for pair in pairs for i in pair}
    return pairs if len(exposed) >= EXPOSED_SHARE * len(names) else []


def connected(count: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Return 0..count - 1 in groups that pairs connect, each ascending, by their first member."""
    parent = list(range(count))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    for i, j in pairs:
        low, high = sorted((root(i), root(j)))
        parent[high] = low
    groups = defaultdict(list)
    for i in range(count):
        groups[root(i)].append(i)
    return list(groups.values())


def _thumbnail(path: Path) -> np.ndarray:
    """Return (SIDE, SIDE) float16 grey levels; of what cannot be read all 0, which is like nothing.

    A large JPEG is decoded at a fraction of its size.
    """
    try:
        if not path.is_file():  # a pipe would be waited for
            return np.zeros((SIDE, SIDE), np.float16)
        with Image.open(path) as picture:
            picture.draft("L", (4 * SIDE, 4 * SIDE))
            is_plain = picture.mode in ("L", "RGB", "P")
            pixels = np.array(picture.convert("L")) if is_plain else read_image(path).mean(axis=2)
    except (OSError, ValueError, SyntaxError):
        return np.zeros((SIDE, SIDE), np.float16)
    small = cv2.resize(pixels.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return small.astype(np.float16)


def _detail(thumbnail: np.ndarray) -> np.ndarray:
    """Return what is finer than BAND, freed of light and contrast, (SIDE, SIDE) of length 1."""
    fine = thumbnail - cv2.GaussianBlur(thumbnail, (0, 0), BAND)
    fine /= np.sqrt(cv2.GaussianBlur(fine * fine, (0, 0), BAND) + 1)
    return _unit((fine - fine.mean())[None])[0].astype(np.float16)


def _unit(maps: np.ndarray) -> np.ndarray:
    lengths = np.sqrt((maps**2).sum(axis=(1, 2), keepdims=True))
    return maps / np.maximum(lengths, 1e-6)


def _versions(maps: np.ndarray) -> Iterator[np.ndarray]:
    """Give (N, side, side) maps turned by each quarter, as they are and mirrored: views."""
    for mirrored in (maps, maps[:, :, ::-1]):
        for quarters in range(4):
            yield np.rot90(mirrored, quarters, axes=(1, 2))


def _parts(pairs: np.ndarray) -> Iterator[np.ndarray]:
    """Give (M, 2) pairs some at a time, as two rows."""
    for start in range(0, len(pairs), 8 * ROWS):
        yield pairs[start : start + 8 * ROWS].T


def _places(names: Sequence[str]) -> tuple[np.ndarray, np.ndarray, float]:
    """Return each name's rank and last number, and the median gap between such numbers.

    Names are ordered by their text without numbers, then by their numbers from the last one on.
    """
    keys = []
    for name in names:
        numbers = [int(digits) for digits in re.findall(r"\d+", name)]
        keys.append((re.sub(r"\d+", "#", name), numbers[::-1] or [0], name))
    order = sorted(range(len(names)), key=keys.__getitem__)
    ranks = np.empty(len(names), np.int64)
    ranks[order] = np.arange(len(names))
    last = np.array([float(numbers[0]) for _, numbers, _ in keys])
    gaps = np.diff(last[order])
    gaps = gaps[gaps > 0]
    return ranks, last, float(np.median(gaps)) if len(gaps) else 1.0


def _by_names(records: Sequence[Record], rule: str) -> list[Record]:
    try:
        pattern = re.compile(rule)
    except re.error as error:
        raise ValueError(
            f"data.group: expected auto, none or a regular expression, got {rule!r}: {error}."
        ) from error
    matches = [pattern.search(record.name) for record in records]
    if not any(matches):
        raise ValueError(
            f"data.group: expected a regular expression that is found in names, got {rule!r}, "
            f"found in none of {len(records)}, such as {records[0].name}. Correct it."
        )
    return [
        replace(record, group="_".join(match.groups() or (match[0],))) if match else record
        for record, match in zip(records, matches, strict=True)
    ]


def _read_cache(path: Path) -> dict[tuple[str, str], str]:
    """Return {(name, bytes): group} of a file; empty where it cannot be read."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {(row["name"], row["bytes"]): row["group"] for row in csv.DictReader(file)}
    except (OSError, KeyError, UnicodeDecodeError, csv.Error):
        return {}
