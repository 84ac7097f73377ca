"""A region of interest: the part of a picture in which defects are looked for."""

from pathlib import Path

import cv2
import numpy as np

from datasets.files import read_image

FROM = 128  # grey level from which a pixel of a mask is inside


class Roi:
    """A mask, or a polygon in pixels."""

    def __init__(self, given: str):
        """Read a region.

        Args:
            given: a picture whose bright pixels are inside, or the corners of a polygon,
                "x,y x,y x,y ...", in pixels.

        Raises:
            ValueError: neither; a region without a pixel.
        """
        self._given = given
        self._mask: np.ndarray | None = None
        self._corners: np.ndarray | None = None
        if Path(given).is_file():
            self._mask = read_image(Path(given)).max(axis=2) >= FROM
            self._refuse_empty(self._mask)
            return
        try:
            corners = np.array([[float(n) for n in pair.split(",")] for pair in given.split()])
            if corners.ndim != 2 or corners.shape[1] != 2 or len(corners) < 3:
                raise ValueError
        except ValueError as error:
            raise ValueError(
                f"roi: expected a picture, or three or more corners such as "
                f'"10,10 200,10 200,150", got {given!r}.'
            ) from error
        if not np.isfinite(corners).all() or np.abs(corners).max() > 2**20:
            raise ValueError(f"roi: expected corners in pixels, got {given!r}.")
        self._corners = np.round(corners).astype(np.int32)

    def of(self, size: tuple[int, int], name: str) -> np.ndarray:
        """Return the region as (H, W) bool.

        Args:
            size: (H, W) of the picture.
            name: of the picture, for the message.

        Raises:
            ValueError: the mask has another size, or no corner of the polygon reaches the picture.
        """
        region = self._mask
        if self._corners is not None:
            region = np.zeros(size, np.uint8)
            cv2.fillPoly(region, [self._corners], 1)
            region = region.astype(bool)
            self._refuse_empty(region)
        if region.shape != size:
            raise ValueError(
                f"{name}: expected the size of the region {self._given}, {region.shape}, got "
                f"{size}. Give a region for pictures of this size."
            )
        return region

    def _refuse_empty(self, region: np.ndarray) -> None:
        if not region.any():
            raise ValueError(f"roi: expected a pixel inside, got none in {self._given}.")
