"""Random crops: where they are taken, how they are turned and scaled, and how they look.

Boxes go through the same transformation as the pixels. Turning by quarters and mirroring keep a
box exact. Turning by any angle is exact only for a vehicle that lay along the picture's axes,
which a long box tells: its outline is taken for a rectangle with rounded corners, and vehicles
that lay aslant are covered in such a crop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from inference.pipeline.letterbox import PADDING_GREY
from inference.pipeline.types import Image
from inference.training.data import Boxes, Picture, Sources

Rng = np.random.Generator
Matrix = npt.NDArray[np.float64]

_MISTAKEN_SHARE = 0.65  # of the crops of backgrounds
_MISTAKEN_SIDES_PIXELS = (8.0, 30.0)
_VISIBLE_SHARE = 0.35  # of a vehicle's box; what lies further outside the crop has no box
_AXIS_ALIGNED_ASPECT = 1.75
_CORNER_RADIUS_SHARE = 0.22  # of a vehicle's width
_CAR_SIDES_PIXELS = (12.0, 68.0)  # what most crops show; the rest show larger ones
_SMALL_CAR_SIDES_PIXELS = (10.0, 34.0)  # in mosaics
_LARGE_CAR_SIDES_PIXELS = (68.0, 115.0)
_SCALES = (0.12, 2.2)
# How many cars long a vehicle of each class is, to tell a photograph's scale by its vehicles.
_CAR_LENGTHS = np.array([1.0, 1.5, 2.6, 1.35])
_RARE_CLASSES = ((3, 0.5), (2, 0.4), (1, 0.1))


@dataclass(frozen=True)
class Mix:
    """How often each kind of crop is drawn (shares of one) and what is done to it."""

    scenes: float = 0.07
    photograph_backgrounds: float = 0.18
    bare_backgrounds: float = 0.20
    rare_classes: float = 0.30  # of the crops around vehicles of photographs
    any_angle: float = 0.30
    mosaics: float = 0.30  # of the crops: four smaller ones with smaller vehicles in one
    beyond_the_edge: float = 0.15  # of the crops may show grey around the photograph
    markings: float = 0.12


@dataclass(frozen=True)
class Sample:
    """A square crop RGB uint8, its boxes (n, 4) in its pixels and classes (n,).

    `detailed`: the same crop, undegraded, at twice the size, when it was asked for.
    """

    image: Image
    boxes_xyxy: Boxes
    class_ids: npt.NDArray[np.int64]
    detailed: Image | None = None


def draw_sample(
    rng: Rng, sources: Sources, size: int, mix: Mix | None = None, *, detailed: bool = False
) -> Sample:
    """One crop of `size` pixels, chosen and altered by `rng` alone."""
    mix = mix or Mix()
    if rng.random() < mix.mosaics:
        parts = [
            _draw_crop(
                rng,
                sources,
                size // 2,
                mix,
                detailed=detailed,
                car_sides=_SMALL_CAR_SIDES_PIXELS,
            )
            for _ in range(4)
        ]
        return _mosaic(parts, size // 2)
    sides = _CAR_SIDES_PIXELS if rng.random() < 0.9 else _LARGE_CAR_SIDES_PIXELS
    return _draw_crop(rng, sources, size, mix, detailed=detailed, car_sides=sides)


def _mosaic(parts: list[Sample], size: int) -> Sample:
    """Four crops of `size` pixels side by side and one above the other."""

    def tiled(images: list[Image]) -> Image:
        return np.vstack((np.hstack(images[:2]), np.hstack(images[2:])))

    shifts = [np.tile(np.array([x, y], np.float32) * size, 2) for y in (0, 1) for x in (0, 1)]
    boxes = [part.boxes_xyxy + shift for part, shift in zip(parts, shifts, strict=True)]
    detailed = [part.detailed for part in parts if part.detailed is not None]
    return Sample(
        tiled([part.image for part in parts]),
        np.concatenate(boxes),
        np.concatenate([part.class_ids for part in parts]),
        tiled(detailed) if detailed else None,
    )


def _draw_crop(
    rng: Rng,
    sources: Sources,
    size: int,
    mix: Mix,
    *,
    detailed: bool,
    car_sides: tuple[float, float],
) -> Sample:
    picture, around_vehicle, rare = _choose(rng, sources, mix)
    side = float(np.exp(rng.uniform(*np.log(car_sides))))
    point, scale = _place(rng, picture, around_vehicle, rare, side)
    matrix = _transformation(rng, picture, point, scale=scale, size=size, mix=mix)
    return _crop(rng, picture, matrix, size=size, mix=mix, detailed=detailed)


# -- choosing ------------------------------------------------------------------------------------


def _choose(rng: Rng, sources: Sources, mix: Mix) -> tuple[Picture, bool, bool]:
    """A picture, whether to crop around a vehicle of it, and whether around a rare one."""
    kind = rng.random()
    if kind < mix.scenes and sources.scenes:
        return _one_of(rng, sources.scenes), True, False
    kind -= mix.scenes
    if kind < mix.bare_backgrounds and sources.backgrounds:
        return _background(rng, sources.backgrounds), False, False
    kind -= mix.bare_backgrounds
    if kind < mix.photograph_backgrounds:
        return _photograph(rng, sources.photographs), False, False
    if rng.random() < mix.rare_classes:
        having = _with_rare_class(rng, sources.photographs)
        if having is not None:
            return having, True, True
    return _photograph(rng, sources.photographs), True, False


def _background(rng: Rng, backgrounds: tuple[Picture, ...]) -> Picture:
    """A picture without vehicles, more often one that has been mistaken somewhere."""
    mistaken = tuple(picture for picture in backgrounds if len(picture.mistaken_xyxy))
    if mistaken and rng.random() < _MISTAKEN_SHARE:
        return _one_of(rng, mistaken)
    return _one_of(rng, backgrounds)


def _one_of(rng: Rng, pictures: tuple[Picture, ...]) -> Picture:
    return pictures[rng.integers(len(pictures))]


def _photograph(rng: Rng, photographs: tuple[Picture, ...]) -> Picture:
    """A photograph; a long sequence of alike frames counts by the root of its length only."""
    groups: dict[str, list[Picture]] = {}
    for picture in photographs:
        groups.setdefault(picture.sequence, []).append(picture)
    members = list(groups.values())
    weights = np.sqrt([len(group) for group in members])
    group = members[rng.choice(len(members), p=weights / weights.sum())]
    return group[rng.integers(len(group))]


def _with_rare_class(rng: Rng, photographs: tuple[Picture, ...]) -> Picture | None:
    classes, weights = zip(*_RARE_CLASSES, strict=True)
    wanted = rng.choice(classes, p=weights)
    having = tuple(picture for picture in photographs if (picture.class_ids == wanted).any())
    return _photograph(rng, having) if having else None


def _place(
    rng: Rng, picture: Picture, around_vehicle: bool, rare: bool, side: float
) -> tuple[Matrix, float]:
    """A point of the picture to show, and the scale at which a car is `side` pixels long."""
    if not around_vehicle and len(picture.mistaken_xyxy) and rng.random() < _MISTAKEN_SHARE:
        box = picture.mistaken_xyxy[rng.integers(len(picture.mistaken_xyxy))]
        shown = float(np.exp(rng.uniform(*np.log(_MISTAKEN_SIDES_PIXELS))))
        return (box[:2] + box[2:]) / 2, min(shown / max(float((box[2:] - box[:2]).max()), 4), 1.3)
    if len(picture.boxes_xyxy) == 0:
        scale = float(np.exp(rng.uniform(math.log(0.25), math.log(1.4))))
        return rng.uniform((0, 0), picture.size_wh), scale
    if rare and (picture.class_ids > 0).any():
        index = int(rng.choice(np.flatnonzero(picture.class_ids > 0)))
    else:
        index = int(rng.integers(len(picture.boxes_xyxy)))
    scale = float(np.clip(side / _car_side(picture, index), *_SCALES))
    if around_vehicle:
        box = picture.boxes_xyxy[index]
        return (box[:2] + box[2:]) / 2, scale
    return rng.uniform((0, 0), picture.size_wh), scale


def _car_side(picture: Picture, index: int) -> float:
    """How many pixels long a car is at that place of the picture, from the five nearest boxes."""
    boxes = picture.boxes_xyxy
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    nearest = np.argsort(np.linalg.norm(centres - centres[index], axis=1))[:5]
    sides = (boxes[nearest, 2:] - boxes[nearest, :2]).max(axis=1)
    return max(float(np.median(sides / _CAR_LENGTHS[picture.class_ids[nearest]])), 4.0)


# -- geometry ------------------------------------------------------------------------------------


def _transformation(
    rng: Rng, picture: Picture, point: Matrix, *, scale: float, size: int, mix: Mix
) -> Matrix:
    """The matrix (2, 3) from the picture's pixels to the crop's."""
    angle = math.pi / 2 * int(rng.integers(4))
    if len(picture.boxes_xyxy) == 0 or (rng.random() < mix.any_angle and _mostly_aligned(picture)):
        angle = float(rng.uniform(0, 2 * math.pi))
    cosine, sine = math.cos(angle), math.sin(angle)
    turn = np.array([[cosine, -sine], [sine, cosine]])
    if rng.random() < 0.5:
        turn = turn @ np.diag([-1.0, 1.0])
    stretch = np.exp(rng.uniform(-0.14, 0.14, 2)) if rng.random() < 0.5 else np.ones(2)
    linear = np.diag(stretch * scale) @ turn
    wanted = size / 2 + rng.uniform(-0.38, 0.38, 2) * size
    shift = wanted - linear @ np.asarray(point, float)
    if rng.random() >= mix.beyond_the_edge:
        shift += _pull_inside(picture, linear, shift, size)
    return np.column_stack((linear, shift))


def _pull_inside(picture: Picture, linear: Matrix, shift: Matrix, size: int) -> Matrix:
    """How far to move a crop so that it shows little beyond the picture's edges."""
    width, height = picture.size_wh
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]]) @ linear.T + shift
    low, high = corners.min(axis=0), corners.max(axis=0)
    moved = np.where(low > 0, -low, np.where(high < size, size - high, 0.0))
    # A picture smaller than the crop stays where it fell.
    return np.where(high - low >= size, moved, 0.0)


def _mostly_aligned(picture: Picture) -> bool:
    return bool(_aligned(picture.boxes_xyxy).mean() > 0.6)


def _aligned(boxes_xyxy: Boxes) -> npt.NDArray[np.bool_]:
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    return sides.max(axis=1) >= _AXIS_ALIGNED_ASPECT * sides.min(axis=1)


def transform_boxes(boxes_xyxy: Boxes, matrix: Matrix) -> Boxes:
    """The upright boxes (n, 4) around vehicles that filled `boxes_xyxy` before the matrix (2, 3).

    A vehicle is a rectangle with rounded corners. For quarters of a turn the box is exact.
    """
    centres = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2 @ matrix[:, :2].T + matrix[:, 2]
    sides = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).astype(float)
    radii = _CORNER_RADIUS_SHARE * sides.min(axis=1, keepdims=True)
    straight = (sides / 2 - radii) @ np.abs(matrix[:, :2]).T
    halves = straight + radii * np.linalg.norm(matrix[:, :2], axis=1)
    return np.concatenate((centres - halves, centres + halves), axis=1).astype(np.float32)


def _is_quarter_turn(matrix: Matrix) -> bool:
    linear = np.abs(matrix[:, :2])
    return bool(min(linear[0].min() / linear[0].max(), linear[1].min() / linear[1].max()) < 1e-6)


def _crop(
    rng: Rng, picture: Picture, matrix: Matrix, *, size: int, mix: Mix, detailed: bool
) -> Sample:
    factor = 2 if detailed else 1
    image = _warp(rng, picture, matrix * factor, size * factor)
    boxes, class_ids = transform_boxes(picture.boxes_xyxy, matrix), picture.class_ids
    neutral = transform_boxes(picture.neutral_xyxy, matrix)
    if not _is_quarter_turn(matrix) and len(boxes):
        aslant = ~_aligned(picture.boxes_xyxy)
        neutral = np.concatenate((neutral, boxes[aslant]))
        boxes, class_ids = boxes[~aslant], class_ids[~aslant]
    boxes, class_ids = _visible(boxes, class_ids, size)
    _cover(rng, image, neutral * factor, boxes * factor)
    if rng.random() < mix.markings:
        _paint_markings(rng, image, boxes * factor)
    image = _toned(rng, image)
    small = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA) if detailed else image
    return Sample(_degraded(rng, small), boxes, class_ids, image if detailed else None)


def _warp(rng: Rng, picture: Picture, matrix: Matrix, size: int) -> Image:
    scale = math.sqrt(abs(np.linalg.det(matrix[:, :2])))
    level = max(0, int(math.log2(1 / scale) + 0.2)) if scale < 1 else 0
    # The service shrinks whole photographs without smoothing them first: some crops do, too.
    if level and rng.random() < 0.5:
        level -= 1
    level = min(level, len(picture.levels) - 1)
    source = picture.levels[level]
    ratio = picture.size_wh[0] / source.shape[1], picture.size_wh[1] / source.shape[0]
    linear = matrix[:, :2] @ np.diag(ratio)
    # Pixels are areas: the centre of the first lies half a pixel from the edge.
    shift = matrix[:, 2] + linear @ np.array([0.5, 0.5]) - 0.5
    border = (PADDING_GREY,) * 3
    return cv2.warpAffine(
        source,
        np.column_stack((linear, shift)),
        (size, size),
        flags=cv2.INTER_LINEAR if scale < 1 or rng.random() < 0.5 else cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=border,
    )


def _visible(
    boxes_xyxy: Boxes, class_ids: npt.NDArray[np.int64], size: int
) -> tuple[Boxes, npt.NDArray[np.int64]]:
    clipped = np.clip(boxes_xyxy, 0, size)
    areas = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(axis=1)
    sides = clipped[:, 2:] - clipped[:, :2]
    keep = (sides.prod(axis=1) >= _VISIBLE_SHARE * areas) & (sides.min(axis=1) >= 2.5)
    return clipped[keep], class_ids[keep]


# -- pixels --------------------------------------------------------------------------------------


def _cover(rng: Rng, image: Image, neutral_xyxy: Boxes, boxes_xyxy: Boxes) -> None:
    """Covers vehicles without a label by the colour around them, sparing those with one."""
    size = image.shape[0]
    spared = [
        (slice(int(y1), math.ceil(y2)), slice(int(x1), math.ceil(x2)))
        for x1, y1, x2, y2 in boxes_xyxy
    ]
    kept = [image[part].copy() for part in spared]
    for x1, y1, x2, y2 in neutral_xyxy:
        left, top = max(int(x1) - 1, 0), max(int(y1) - 1, 0)
        right, bottom = min(math.ceil(x2) + 1, size), min(math.ceil(y2) + 1, size)
        if right <= left or bottom <= top:
            continue
        around = image[max(top - 4, 0) : bottom + 4, max(left - 4, 0) : right + 4]
        colour = np.median(around.reshape(-1, 3), axis=0)
        noise = rng.normal(0, 4, (bottom - top, right - left, 1))
        image[top:bottom, left:right] = np.clip(colour + noise, 0, 255)
    for part, pixels in zip(spared, kept, strict=True):
        image[part] = pixels


def _paint_markings(rng: Rng, image: Image, boxes_xyxy: Boxes) -> None:
    """Zebra crossings and dashes, which are no vehicles, beside those that are there."""
    size = image.shape[0]
    layer = image.copy()
    count, long, wide = int(rng.integers(3, 12)), rng.uniform(0.05, 0.22), rng.uniform(0.008, 0.03)
    angle, centre = rng.uniform(0, math.pi), rng.uniform(0.1, 0.9, 2) * size
    along = np.array([math.cos(angle), math.sin(angle)]) * size
    across = np.array([-along[1], along[0]])
    dashes = rng.random() < 0.3
    for index in range(count):
        step = (index - count / 2) * (2.4 * long if dashes else 2 * wide)
        middle = centre + (along if dashes else across) * step
        half_long, half_wide = along * long / 2, across * wide / 2
        corners = np.array(
            [
                middle - half_long - half_wide,
                middle + half_long - half_wide,
                middle + half_long + half_wide,
                middle - half_long + half_wide,
            ]
        )
        shade = int(rng.integers(185, 250))
        cv2.fillPoly(layer, [np.round(corners * 16).astype(np.int32)], (shade,) * 3, cv2.LINE_AA, 4)
    for x1, y1, x2, y2 in boxes_xyxy:
        part = slice(int(y1), math.ceil(y2)), slice(int(x1), math.ceil(x2))
        layer[part] = image[part]
    share = float(rng.uniform(0.5, 0.95))
    cv2.addWeighted(layer, share, image, 1 - share, 0, dst=image)


def _toned(rng: Rng, image: Image) -> Image:
    """Brightness, contrast, gamma and the balance of colours, seldom without colour."""
    ramp = np.linspace(0, 1, 256)
    gamma = float(np.exp(rng.normal(0, 0.25)))
    contrast, brightness = float(np.exp(rng.normal(0, 0.22))), float(rng.normal(0, 0.07))
    curve = (ramp**gamma - 0.5) * contrast + 0.5 + brightness
    gains = np.exp(rng.normal(0, 0.06 if rng.random() < 0.7 else 0.15, 3))
    table = np.clip(curve[:, None] * gains * 255, 0, 255).astype(np.uint8)
    toned = cv2.LUT(image, table[None])
    saturation = 0.0 if rng.random() < 0.04 else float(np.exp(rng.normal(0, 0.3)))
    grey = cv2.cvtColor(cv2.cvtColor(toned, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    toned = cv2.addWeighted(toned, saturation, grey, 1 - saturation, 0)
    if rng.random() < 0.15:
        toned = _hue_turned(toned, float(rng.normal(0, 15)))
    if rng.random() < 0.1:
        _shade_half(rng, toned)
    return toned


def _hue_turned(image: Image, degrees: float) -> Image:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    turn = round(degrees * 256 / 360)
    hsv[..., 0] += np.uint8(turn % 256)  # a full turn is 256: it wraps by itself
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL), np.uint8)


def _shade_half(rng: Rng, image: Image) -> None:
    """A shadow with a straight edge, as of a house."""
    size = image.shape[0]
    angle, offset = rng.uniform(0, 2 * math.pi), rng.uniform(-0.3, 0.3) * size
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) - size / 2
    distance = x * math.cos(angle) + y * math.sin(angle) - offset
    depth = float(rng.uniform(0.3, 0.65))
    light = 1 - depth / (1 + np.exp(-np.clip(distance / rng.uniform(0.5, 3), -30, 30)))
    image[:] = (image * light[..., None]).astype(np.uint8)


def _degraded(rng: Rng, image: Image) -> Image:
    """What cameras and video do: blur, motion, sharpening, noise, coarse pixels, compression."""
    size = image.shape[0]
    chances = rng.random(6)
    if chances[0] < 0.18:
        image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.4, 1.5)))
    if chances[1] < 0.06:
        length, angle = int(rng.integers(2, 6)), float(rng.uniform(0, math.pi))
        kernel = np.zeros((2 * length + 1, 2 * length + 1), np.float32)
        reach = np.round(np.array([math.cos(angle), math.sin(angle)]) * length).astype(int)
        cv2.line(kernel, tuple(length - reach), tuple(length + reach), 1.0)
        image = cv2.filter2D(image, -1, kernel / kernel.sum())
    if chances[2] < 0.12:
        small = round(size * float(rng.uniform(0.5, 0.85)))
        image = cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA)
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    if chances[5] < 0.15:
        soft = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.8, 2.0)))
        amount = float(rng.uniform(0.3, 1.5))
        image = cv2.addWeighted(image, 1 + amount, soft, -amount, 0)
    if chances[3] < 0.2:
        noise = rng.standard_normal(image.shape, np.float32) * float(rng.uniform(2, 10))
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
    if chances[4] < 0.3:
        quality = int(rng.integers(30, 92))
        _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
        image = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), np.uint8)
    return image
