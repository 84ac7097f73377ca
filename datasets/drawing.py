"""What generated pictures are drawn with: noise, blobs and lines."""

import cv2
import numpy as np

LINE_STEPS = np.linspace(0, 1, 40)  # where along a curve its points lie


def blob(
    rng: np.random.Generator,
    size: tuple[int, int],
    smallest: float,
    largest: float,
    softness: float,
) -> np.ndarray:
    """Return an irregular blob, (H, W) in [0, 1], with an edge of `softness` px standard deviation.

    `smallest` and `largest` bound its two radii in short sides.
    """
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    cy, cx = rng.uniform(0.05, 0.95, 2) * size
    ry, rx = rng.uniform(smallest, largest, 2) * min(size)
    distance = np.hypot((y - cy) / ry, (x - cx) / rx) + 0.12 * noise(rng, size, 8)
    return cv2.GaussianBlur((distance < 1).astype(np.float32), (0, 0), softness)


def line(
    size: tuple[int, int],
    points: tuple[np.ndarray, np.ndarray, np.ndarray],
    width: float | np.ndarray,
) -> np.ndarray:
    """Return which share of each pixel a quadratic curve covers, (H, W) in [0, 1].

    Args:
        size: (H, W).
        points: start, control point and end as (y, x) pixels; may lie outside.
        width: in pixels; one number, or one for each of LINE_STEPS.
    """
    fine = 4  # drawn so many times larger, then averaged
    t = LINE_STEPS[:, None]
    start, control, end = points
    curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end
    path = np.round(curve[:, ::-1] * fine).astype(int).tolist()
    thickness = np.broadcast_to(np.maximum(1, np.round(np.multiply(width, fine))), len(path))
    canvas = np.zeros((size[0] * fine, size[1] * fine), np.float32)
    for here, there, thick in zip(path, path[1:], thickness[1:].astype(int).tolist(), strict=False):
        cv2.line(canvas, here, there, 1.0, thick)
    return cv2.resize(canvas, size[::-1], interpolation=cv2.INTER_AREA)


def noise(
    rng: np.random.Generator, size: tuple[int, int], sigma_y: float, sigma_x: float | None = None
) -> np.ndarray:
    """Return smooth noise (H, W) float32 of mean 0 and deviation 1."""
    white = rng.standard_normal(size, dtype=np.float32)
    smooth = cv2.GaussianBlur(white, (0, 0), sigmaX=sigma_x or sigma_y, sigmaY=sigma_y)
    return (smooth - smooth.mean()) / smooth.std()


def tilted(texture: np.ndarray, size: tuple[int, int], degrees: float) -> np.ndarray:
    """Rotate a texture about its centre and cut `size` out of its middle."""
    height, width = texture.shape
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
    turned = cv2.warpAffine(texture, turn, (width, height))
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return turned[top : top + size[0], left : left + size[1]]


def cracks(
    rng: np.random.Generator, size: tuple[int, int], width: float, branches: int
) -> np.ndarray:
    """Return which share of each pixel a crack and its branches cover, (H, W) in [0, 1].

    A crack wanders, is wider here and thinner there, and its branches leave it anywhere.

    Args:
        rng: source of every draw.
        size: (H, W).
        width: of the main crack, pixels.
        branches: at most so many.
    """
    fine = 4  # drawn so many times larger, then averaged
    canvas = np.zeros((size[0] * fine, size[1] * fine), np.float32)
    start = rng.uniform(0, 1, 2) * size
    heading = np.arctan2(*(np.array(size) / 2 - start)) + rng.uniform(-0.6, 0.6)
    main = _walk(rng, start, heading, rng.uniform(0.5, 1.2) * max(size))
    paths = [(main, width)]
    for _ in range(rng.integers(0, branches + 1)):
        at = rng.integers(len(main) // 5, len(main) - 1)
        (dy, dx), side = main[at] - main[at - 1], rng.choice((-1, 1))
        turned = np.arctan2(dy, dx) + side * rng.uniform(0.5, 1.2)
        length = rng.uniform(0.1, 0.5) * max(size)
        paths.append((_walk(rng, main[at], turned, length), rng.uniform(0.5, 0.9) * width))
    for path, wide in paths:
        swell = np.interp(np.arange(len(path)), np.linspace(0, len(path), 9), rng.uniform(0, 1, 9))
        points = np.round(path[:, ::-1] * fine).astype(int).tolist()
        thick = np.maximum(1, np.round(wide * (0.55 + 0.7 * swell) * fine)).astype(int).tolist()
        for here, there, pixels in zip(points, points[1:], thick[1:], strict=False):
            cv2.line(canvas, here, there, 1.0, pixels)
    return cv2.resize(canvas, size[::-1], interpolation=cv2.INTER_AREA)


def shifted(picture: np.ndarray, move: np.ndarray) -> np.ndarray:
    """Return a (H, W) picture moved by (y, x) pixels; its border is repeated."""
    matrix = np.array([[1, 0, move[1]], [0, 1, move[0]]], np.float32)
    size = picture.shape[::-1]
    return cv2.warpAffine(picture.astype(np.float32), matrix, size, borderMode=cv2.BORDER_REPLICATE)


def _walk(rng: np.random.Generator, start: np.ndarray, heading: float, length: float) -> np.ndarray:
    """Return (N, 2) points (y, x), 3 pixels apart, of a path that keeps its heading roughly."""
    count = max(3, int(length / 3))
    jitter, drift = rng.normal(0, 0.35, count), np.cumsum(rng.normal(0, 0.06, count))
    angles = heading + drift + jitter
    steps = 3 * np.stack([np.sin(angles), np.cos(angles)], axis=1)
    return start + np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
