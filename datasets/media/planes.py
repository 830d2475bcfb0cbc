"""Pictures as videos keep them: brightness in full, colour in a quarter of the pixels."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

Plane = npt.NDArray[np.uint8]

# The numbers are those of ISO/IEC 23091-2, which codecs and containers write.
BT709 = 1
UNSPECIFIED = 2
FCC = 4
BT470BG = 5
SMPTE170M = 6
SMPTE240M = 7
BT2020 = 9
BT2020_CONSTANT = 10
_RED_AND_BLUE_SHARES = {
    BT709: (0.2126, 0.0722),
    BT2020: (0.2627, 0.0593),
    BT2020_CONSTANT: (0.2627, 0.0593),
}
_SHARES_OF_THE_REST = (0.299, 0.114)
# What av turns into RGB and back; what is not told it takes for the matrix of standard definition.
_TURNED_MATRICES = {
    BT709: BT709,
    UNSPECIFIED: BT470BG,
    FCC: FCC,
    BT470BG: BT470BG,
    SMPTE170M: BT470BG,
    SMPTE240M: SMPTE240M,
    BT2020: BT2020,
    BT2020_CONSTANT: BT2020,
}
_TALLEST_STANDARD_DEFINITION = 576


@dataclass(frozen=True)
class Colours:
    """What the numbers of a picture mean: matrix, primaries and transfer by their codes.

    `full_range`: from 0 to 255 rather than from 16 to 235 (240 for colour).
    """

    matrix: int = BT709
    primaries: int = BT709
    transfer: int = BT709
    full_range: bool = False

    def turned_matrix(self, height: int) -> int:
        """The matrix by which such a picture becomes RGB and is made of RGB, as av numbers it.

        Where av cannot turn the one that is told, it is what players take for it.
        """
        usual = BT709 if height > _TALLEST_STANDARD_DEFINITION else BT470BG
        return _TURNED_MATRICES.get(self.matrix, usual)

    def of_rgb(self, rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """RGB uint8 (..., 3) as brightness, blueness and redness uint8 (..., 3)."""
        red_share, blue_share = _RED_AND_BLUE_SHARES.get(self.matrix, _SHARES_OF_THE_REST)
        red, green, blue = np.moveaxis(rgb.astype(np.float32) / 255, -1, 0)
        luma = red_share * red + (1 - red_share - blue_share) * green + blue_share * blue
        blueness = (blue - luma) / (2 * (1 - blue_share))
        redness = (red - luma) / (2 * (1 - red_share))
        if self.full_range:
            scaled = (255 * luma, 128 + 255 * blueness, 128 + 255 * redness)
        else:
            scaled = (16 + 219 * luma, 128 + 224 * blueness, 128 + 224 * redness)
        return np.stack(scaled, axis=-1).round().clip(0, 255).astype(np.uint8)


PLAIN_COLOURS = Colours()
"""What a video of our own making has."""
SQUARE = Fraction(1)
"""The width of a pixel by its height, where nothing else is told."""


@dataclass(frozen=True, eq=False)
class Planes:
    """A picture of even width and height: `y` uint8 (h, w), `u` and `v` uint8 (h / 2, w / 2)."""

    y: Plane
    u: Plane
    v: Plane
    colours: Colours

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.y.shape[1], self.y.shape[0]

    @property
    def nbytes(self) -> int:
        """The memory of the pixels."""
        return self.y.nbytes + self.u.nbytes + self.v.nbytes

    def copied(self) -> tuple[Planes, npt.NDArray[np.uint8]]:
        """A copy that may be drawn on, and its memory: the planes behind each other, (h 3/2, w)."""
        width, height = self.size_wh
        memory = np.empty(width * height * 3 // 2, np.uint8)
        y, u, v = np.split(memory, (width * height, width * height * 5 // 4))
        half = height // 2, width // 2
        copy = Planes(y.reshape(height, width), u.reshape(half), v.reshape(half), self.colours)
        copy.y[:], copy.u[:], copy.v[:] = self.y, self.u, self.v
        return copy, memory.reshape(height * 3 // 2, width)
