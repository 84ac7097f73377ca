"""Bilinear upsampling without the upsampled map.

Every function agrees with `F.interpolate(mode="bilinear", align_corners=False)`, which reads a
grid of (h, w) cells at (H, W) pixels and repeats the cells at the border. A pixel is named by its
index in the flattened (B, H, W), a cell by its index in the flattened (B, h, w).
"""

import torch


def source_positions(num_pixels: int, num_cells: int, device: torch.device) -> torch.Tensor:
    """Return where the pixels of one axis lie among its cells, float64 in [0, num_cells - 1]."""
    pixels = torch.arange(num_pixels, dtype=torch.float64, device=device)
    return ((pixels + 0.5) * (num_cells / num_pixels) - 0.5).clamp(0, num_cells - 1)


def interpolation_matrix(num_pixels: int, num_cells: int, like: torch.Tensor) -> torch.Tensor:
    """Return the upsampling of one axis as (num_pixels, num_cells) weights; rows sum to 1."""
    positions = source_positions(num_pixels, num_cells, like.device)
    cells = torch.arange(num_cells, device=like.device)
    return (1 - (positions[:, None] - cells).abs()).clamp(min=0).to(like.dtype)


def corner_cells(
    pixels: torch.Tensor, size: tuple[int, int], grid: tuple[int, int], dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the four cells that each pixel is interpolated from, and their weights.

    Args:
        pixels: any shape, pixel indices.
        size: (H, W).
        grid: (h, w).
        dtype: of the weights.

    Returns:
        (4, *pixels.shape) int64 cell indices, and as many weights.
    """
    (height, width), (num_rows, num_columns) = size, grid
    line = pixels.div(width, rounding_mode="trunc")  # faster than // on the CPU
    image = line.div(height, rounding_mode="trunc")
    y = source_positions(height, num_rows, pixels.device)
    x = source_positions(width, num_columns, pixels.device)
    pixel_y, pixel_x = line - image * height, pixels - line * width
    top, left = y.long().take(pixel_y), x.long().take(pixel_x)
    below, right = (top + 1).clamp(max=num_rows - 1), (left + 1).clamp(max=num_columns - 1)
    top, below = ((image * num_rows + row) * num_columns for row in (top, below))
    cells = torch.stack((top + left, top + right, below + left, below + right))
    y, x = y.frac().to(dtype).take(pixel_y), x.frac().to(dtype).take(pixel_x)
    weights = torch.stack(((1 - y) * (1 - x), (1 - y) * x, y * (1 - x), y * x))
    return cells, weights


def upsampled_norms(features: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return the L2 norm of every upsampled feature vector.

    The squared norm of a weighted sum of four neighbours is a quadratic form of their scalar
    products, so those products are upsampled in place of the features.

    Args:
        features: (B, h, w, E).
        size: (H, W).

    Returns:
        (B, H, W).
    """
    rows = interpolation_matrix(size[0], features.shape[1], features)  # (H, h)
    columns = interpolation_matrix(size[1], features.shape[2], features)  # (W, w)
    row_pairs = 2 * rows[:, :-1] * rows[:, 1:]  # (H, h - 1)
    column_pairs = 2 * columns[:, :-1] * columns[:, 1:]  # (W, w - 1)
    upper, lower = features[:, :-1], features[:, 1:]
    own = _dot(features, features)  # (B, h, w)
    right_of = _dot(features[:, :, :-1], features[:, :, 1:])  # (B, h, w - 1)
    below = _dot(upper, lower)  # (B, h - 1, w)
    across = _dot(upper[:, :, :-1], lower[:, :, 1:]) + _dot(upper[:, :, 1:], lower[:, :, :-1])
    squared = rows.square() @ (own @ columns.square().T + right_of @ column_pairs.T)
    squared += row_pairs @ (below @ columns.square().T + 0.5 * across @ column_pairs.T)
    return squared.clamp(min=0).sqrt()


def _dot(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return (first * second).sum(dim=-1)
