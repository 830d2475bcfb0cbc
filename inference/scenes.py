"""Draws aerial street scenes whose boxes are known exactly: honest test pictures without a licence.

Everything follows from the seed. A main road with lanes, markings and parked cars crosses the
picture at any angle, a side street meets it, and grass, pavements, trees and roofs lie around
them. A vehicle is 15 to 40 pixels long once the picture is fitted into the network's input.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from inference.pipeline.options import DEFAULT_IMAGE_SIZE

Picture = npt.NDArray[np.uint8]
Boxes = npt.NDArray[np.float32]
Points = npt.NDArray[np.float64]
Rgb = tuple[int, int, int]

_SUPERSAMPLING = 2  # drawn larger and averaged, so that edges are as soft as a camera's
_SUBPIXEL_BITS = 4
_LANE_METRES = 3.3
_PARKING_METRES = 2.5
_PAVEMENT_METRES = 2.6
_SHADOW_METRES = 0.75
_MARKING_METRES = 0.16
_STOP_LINE_METRES = 0.4
_MARKING_COLOUR = (204, 204, 198)
_SKY_COLOUR = (206, 218, 234)
_VISIBLE_SHARE = 0.5  # of a vehicle's box; what lies further outside the picture has no true box
_GREATEST_OVERLAP = 0.1  # of two vehicles' boxes in a still scene
_CAR_CLASS_ID = 0

_BODY_COLOURS: tuple[Rgb, ...] = (
    (236, 238, 240),
    (222, 224, 226),
    (186, 190, 194),
    (128, 132, 138),
    (66, 68, 74),
    (48, 50, 56),
    (158, 26, 30),
    (188, 42, 34),
    (34, 68, 146),
    (52, 96, 168),
    (42, 112, 84),
    (214, 196, 160),
)
_ROOF_COLOURS: tuple[Rgb, ...] = (
    (164, 92, 70),
    (148, 80, 62),
    (132, 118, 108),
    (112, 110, 112),
    (172, 160, 146),
    (122, 74, 60),
)


@dataclass(frozen=True)
class Scene:
    """A picture RGB uint8 (h, w, 3), its true boxes (n, 4) in pixels and their classes (n,).

    `object_ids` (n,) tell which vehicle a box is; one that returns to the picture is another.
    """

    image: Picture
    boxes_xyxy: Boxes
    class_ids: npt.NDArray[np.int16]
    object_ids: npt.NDArray[np.int32]


@dataclass(frozen=True)
class _Road:
    """A straight strip; `along` metres run along `angle` from `centre`, `across` to its right."""

    centre: tuple[float, float]
    angle: float
    pixels_per_metre: float
    lanes: int
    reach_metres: float

    @property
    def half_width_metres(self) -> float:
        return self.lanes * _LANE_METRES / 2 + _PARKING_METRES

    def to_pixels(self, along_across: Points) -> Points:
        """Points (n, 2) of the road in metres as points of the picture in pixels."""
        cosine, sine = math.cos(self.angle), math.sin(self.angle)
        turned = along_across @ np.array([[cosine, sine], [-sine, cosine]])
        return turned * self.pixels_per_metre + np.array(self.centre)

    def to_metres(self, point: tuple[float, float]) -> tuple[float, float]:
        """The place of a point of the picture on the road: metres along and across."""
        x = (point[0] - self.centre[0]) / self.pixels_per_metre
        y = (point[1] - self.centre[1]) / self.pixels_per_metre
        cosine, sine = math.cos(self.angle), math.sin(self.angle)
        return x * cosine + y * sine, y * cosine - x * sine


@dataclass(frozen=True)
class _Vehicle:
    """A car: where its middle is on its road, how it looks and how fast it drives."""

    road: _Road
    along_metres: float
    across_metres: float
    heading: float
    length_metres: float
    width_metres: float
    colour: Rgb
    speed_metres_per_second: float

    def to_pixels(self, shape: Points) -> Points:
        """A shape (n, 2), x forwards from -0.5 to 0.5 and y to the right, as pixels."""
        metres = shape * np.array([self.length_metres, self.width_metres])
        cosine, sine = math.cos(self.heading), math.sin(self.heading)
        turned = metres @ np.array([[cosine, sine], [-sine, cosine]])
        return self.road.to_pixels(turned + np.array([self.along_metres, self.across_metres]))

    @property
    def box_xyxy(self) -> tuple[float, float, float, float]:
        outline = self.to_pixels(_BODY)
        (left, top), (right, bottom) = outline.min(axis=0), outline.max(axis=0)
        return float(left), float(top), float(right), float(bottom)


@dataclass(frozen=True)
class _World:
    """All that one seed decides, before any frame is drawn."""

    size_wh: tuple[int, int]
    ground: Picture  # supersampled
    vehicles: tuple[_Vehicle, ...]
    sun: tuple[float, float]


def draw_scene(
    seed: int,
    size_wh: tuple[int, int] = (1280, 720),
    vehicle_count: int = 10,
    *,
    input_size: int = DEFAULT_IMAGE_SIZE,
) -> Scene:
    """One street scene with exactly `vehicle_count` vehicles, all wholly inside the picture.

    No two true boxes overlap by more than a tenth, so that each is a vehicle of its own.
    `input_size`: the longer side of the input of the network in pixels, into which the picture
    will be fitted. Raises ValueError when the picture has no room for so many vehicles.
    """
    rng = np.random.default_rng(seed)
    world = _plan(rng, size_wh, vehicle_count, input_size)
    return _photograph(rng, world, world.vehicles, range(vehicle_count))


def draw_video_scene(
    seed: int,
    frame_count: int,
    size_wh: tuple[int, int] = (1280, 720),
    vehicle_count: int = 10,
    *,
    frames_per_second: float = 25.0,
    input_size: int = DEFAULT_IMAGE_SIZE,
) -> Iterator[Scene]:
    """Frames of one street on which the vehicles of the main road drive and the others stand.

    Vehicles leave at one end and return at the other; a frame's true boxes are clipped to the
    picture and leave out vehicles of which less than half is visible. Arguments and errors as
    for `draw_scene`.
    """
    rng = np.random.default_rng(seed)
    world = _plan(rng, size_wh, vehicle_count, input_size)
    for frame_index in range(frame_count):
        seconds = frame_index / frames_per_second
        driven = [_driven(vehicle, seconds) for vehicle in world.vehicles]
        ids = [index + lap * vehicle_count for index, (_, lap) in enumerate(driven)]
        yield _photograph(rng, world, [vehicle for vehicle, _ in driven], ids)


def match_boxes(true_xyxy: Boxes, found_xyxy: Boxes, iou: float = 0.5) -> tuple[int, int]:
    """How many true boxes were found, and how many found boxes are false, by `pair_boxes`."""
    found_count = len(pair_boxes(true_xyxy, found_xyxy, iou))
    return found_count, len(found_xyxy) - found_count


def pair_boxes(true_xyxy: Boxes, found_xyxy: Boxes, iou: float = 0.5) -> list[tuple[int, int]]:
    """Which true box was found by which found one, as positions in both.

    Pairs are made one to one, the greatest overlap first, as long as it is at least `iou`;
    classes do not count. Boxes (n, 4) and (m, 4) in pixels.
    """
    overlaps = _overlaps(np.asarray(true_xyxy, float), np.asarray(found_xyxy, float))
    pairs = []
    while overlaps.size and overlaps.max() >= iou:
        true_index, found_index = np.unravel_index(overlaps.argmax(), overlaps.shape)
        overlaps[true_index, :] = -1
        overlaps[:, found_index] = -1
        pairs.append((int(true_index), int(found_index)))
    return pairs


def _overlaps(boxes_xyxy: Points, others_xyxy: Points) -> Points:
    # Written apart from the pipeline's own merging, so that one does not vouch for the other.
    overlaps = np.zeros((len(boxes_xyxy), len(others_xyxy)))
    for row, (left, top, right, bottom) in enumerate(boxes_xyxy):
        for column, (x1, y1, x2, y2) in enumerate(others_xyxy):
            shared = max(0.0, min(right, x2) - max(left, x1))
            shared *= max(0.0, min(bottom, y2) - max(top, y1))
            union = (right - left) * (bottom - top) + (x2 - x1) * (y2 - y1) - shared
            overlaps[row, column] = shared / union if union > 0 else 0.0
    return overlaps


# -- planning ------------------------------------------------------------------------------------


def _plan(
    rng: np.random.Generator, size_wh: tuple[int, int], vehicle_count: int, input_size: int
) -> _World:
    width, height = size_wh
    # At 5 to 7 pixels a metre in the network's input, cars of 4 to 4.9 m are 20 to 34 pixels.
    pixels_per_metre = float(rng.uniform(5.0, 7.0)) * max(size_wh) / input_size
    reach_metres = math.hypot(width, height) / pixels_per_metre
    angle = float(rng.uniform(0, 2 * math.pi))
    main = _Road(
        centre=(width * rng.uniform(0.4, 0.6), height * rng.uniform(0.42, 0.58)),
        angle=angle,
        pixels_per_metre=pixels_per_metre,
        lanes=int(rng.choice([2, 4])),
        reach_metres=reach_metres,
    )
    offset_metres = float(rng.uniform(-0.25, 0.25)) * reach_metres
    meeting = main.to_pixels(np.array([[offset_metres, 0.0]]))[0]
    side = replace(
        main,
        centre=(float(meeting[0]), float(meeting[1])),
        angle=angle + math.pi / 2 + float(rng.uniform(-0.2, 0.2)),
        lanes=2,
    )
    sun_angle = float(rng.uniform(0, 2 * math.pi))
    sun = (math.cos(sun_angle), math.sin(sun_angle))
    ground = _draw_ground(rng, size_wh, main, side, sun)
    vehicles = _place_vehicles(rng, size_wh, main, side, vehicle_count)
    return _World(size_wh, ground, vehicles, sun)


def _place_vehicles(
    rng: np.random.Generator,
    size_wh: tuple[int, int],
    main: _Road,
    side: _Road,
    vehicle_count: int,
) -> tuple[_Vehicle, ...]:
    slots = [*_slots(rng, main, side, drives=True), *_slots(rng, side, main, drives=False)]
    chosen: list[_Vehicle] = []
    boxes = np.zeros((0, 4))
    for index in rng.permutation(len(slots)):
        if len(chosen) == vehicle_count:
            break
        box = np.array([slots[index].box_xyxy])
        inside = box.min() >= 2 and (box[0, 2:] <= np.array(size_wh) - 2).all()
        # Side by side on a slanted road, two vehicles can have nearly the same upright box.
        if inside and not (_overlaps(box, boxes) > _GREATEST_OVERLAP).any():
            chosen.append(slots[index])
            boxes = np.concatenate((boxes, box))
    if len(chosen) < vehicle_count:
        raise ValueError(f"a picture of this size has room for {len(chosen)} vehicles only")
    return tuple(chosen)


def _slots(
    rng: np.random.Generator, road: _Road, other: _Road, *, drives: bool
) -> Iterator[_Vehicle]:
    """Every place of a road where a vehicle may be; no two of them touch."""
    for lane in range(-1, road.lanes + 1):
        parked = lane in (-1, road.lanes)
        across = (lane + 0.5 - road.lanes / 2) * _LANE_METRES
        if parked:
            across = math.copysign(road.half_width_metres - _PARKING_METRES / 2, across)
        # Traffic keeps to the right; the picture's y axis points down.
        heading = 0.0 if across > 0 else math.pi
        speed = float(rng.uniform(8, 14)) * (1 if across > 0 else -1)
        along = -road.reach_metres + float(rng.uniform(0, 4))
        while along < road.reach_metres:
            vehicle = _Vehicle(
                road=road,
                along_metres=along,
                across_metres=across + float(rng.normal(0, 0.12)),
                heading=heading + float(rng.normal(0, 0.03)),
                length_metres=float(rng.uniform(4.0, 4.9)),
                width_metres=float(rng.uniform(1.75, 1.95)),
                colour=_BODY_COLOURS[rng.integers(len(_BODY_COLOURS))],
                speed_metres_per_second=0.0 if parked or not drives else speed,
            )
            along += float(rng.uniform(6.5, 9.5))
            if not _near_crossing(vehicle, other, keep_clear=parked or not drives):
                yield vehicle


def _near_crossing(vehicle: _Vehicle, other: _Road, *, keep_clear: bool) -> bool:
    """Whether a vehicle that must keep the crossing clear would stand on it."""
    if not keep_clear:
        return False
    middle = vehicle.to_pixels(np.zeros((1, 2)))[0]
    _, across = other.to_metres((float(middle[0]), float(middle[1])))
    return abs(across) < other.half_width_metres + _PAVEMENT_METRES + 4


def _driven(vehicle: _Vehicle, seconds: float) -> tuple[_Vehicle, int]:
    """The vehicle after some time, and how often it has left its road at one end by then."""
    reach = vehicle.road.reach_metres
    along = vehicle.along_metres + vehicle.speed_metres_per_second * seconds
    laps, rest = divmod(along + reach, 2 * reach)
    return replace(vehicle, along_metres=rest - reach), abs(int(laps))


# -- drawing -------------------------------------------------------------------------------------


def _photograph(
    rng: np.random.Generator,
    world: _World,
    vehicles: Sequence[_Vehicle],
    object_ids: Sequence[int],
) -> Scene:
    canvas = world.ground.copy()
    for vehicle in vehicles:
        _draw_vehicle(canvas, vehicle, world.sun)
    image = cv2.resize(canvas, world.size_wh, interpolation=cv2.INTER_AREA)
    image = cv2.GaussianBlur(image, (0, 0), 0.6)
    noise = rng.normal(0, 2.5, image.shape[:2]).astype(np.float32)[..., None]
    image = np.clip(image + noise, 0, 255).astype(np.uint8)
    boxes, visible = _visible_boxes(vehicles, world.size_wh)
    return Scene(
        image,
        boxes,
        np.full(len(boxes), _CAR_CLASS_ID, np.int16),
        np.array(object_ids, np.int32)[visible],
    )


def _visible_boxes(
    vehicles: Sequence[_Vehicle], size_wh: tuple[int, int]
) -> tuple[Boxes, npt.NDArray[np.bool_]]:
    """Boxes (k, 4) within the picture, and of which vehicles (n,) they are."""
    boxes = np.array([vehicle.box_xyxy for vehicle in vehicles], np.float32).reshape(-1, 4)
    limits = np.array([*size_wh, *size_wh], np.float32)
    clipped = np.clip(boxes, 0, limits)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    seen = (clipped[:, 2:] - clipped[:, :2]).prod(axis=1)
    visible = seen >= _VISIBLE_SHARE * areas
    return clipped[visible], visible


def _fill(canvas: Picture, points: Points, colour: Rgb) -> None:
    scale = _SUPERSAMPLING * 2**_SUBPIXEL_BITS
    corners = np.round(points * scale).astype(np.int32)
    cv2.fillPoly(canvas, [corners], colour, cv2.LINE_AA, _SUBPIXEL_BITS)


def _rectangle(x1: float, y1: float, x2: float, y2: float) -> Points:
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], float)


def _rounded(corner: float = 0.16, power: float = 0.3) -> Points:
    """The outline of a car's body: a rectangle of sides 1 whose corners are rounded."""
    angles = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    cosine, sine = np.cos(angles), np.sin(angles)
    x = np.sign(cosine) * np.abs(cosine) ** corner / 2
    y = np.sign(sine) * np.abs(sine) ** power / 2
    return np.column_stack((x, y))


_BODY = _rounded(0.24, 0.3)
_WINDSCREEN = np.array([[0.24, -0.40], [0.27, 0.0], [0.24, 0.40], [0.09, 0.34], [0.09, -0.34]])
_REAR_WINDOW = np.array([[-0.39, -0.37], [-0.39, 0.37], [-0.27, 0.33], [-0.27, -0.33]])
_SIDE_WINDOW = np.array([[0.19, 0.45], [-0.33, 0.44], [-0.26, 0.37], [0.09, 0.37]])
_ROOF = _rectangle(-0.26, -0.34, 0.08, 0.34)
_BONNET = np.array([[0.44, -0.36], [0.28, -0.38], [0.28, 0.38], [0.44, 0.36]])
_LAMP = _rectangle(0.455, 0.26, 0.49, 0.40)
_MIRRORED = np.array([1.0, -1.0])


def _shade(colour: Rgb, factor: float) -> Rgb:
    red, green, blue = (min(255, max(0, round(part * factor))) for part in colour)
    return red, green, blue


def _reflecting(colour: Rgb, share: float) -> Rgb:
    """A painted surface that faces the sky shows some of it; black cars are never quite black."""
    red, green, blue = (
        round(part + (sky - part) * share) for part, sky in zip(colour, _SKY_COLOUR, strict=True)
    )
    return red, green, blue


def _draw_vehicle(canvas: Picture, vehicle: _Vehicle, sun: tuple[float, float]) -> None:
    shift = np.array(sun) * _SHADOW_METRES * vehicle.road.pixels_per_metre
    _darken(canvas, [vehicle.to_pixels(_BODY) + shift], vehicle.road.pixels_per_metre * 0.12)
    glass: Rgb = (30, 36, 44)
    for shape, colour in (
        (_BODY, _shade(vehicle.colour, 0.9)),
        (_BONNET, _reflecting(vehicle.colour, 0.06)),
        (_WINDSCREEN, glass),
        (_REAR_WINDOW, glass),
        (_SIDE_WINDOW, glass),
        (_SIDE_WINDOW * _MIRRORED, glass),
        (_ROOF, _reflecting(vehicle.colour, 0.16)),
        (_LAMP, (240, 240, 224)),
        (_LAMP * _MIRRORED, (240, 240, 224)),
    ):
        _fill(canvas, vehicle.to_pixels(shape), colour)


def _darken(canvas: Picture, shapes: list[Points], blur_pixels: float, share: float = 0.5) -> None:
    """Shadows of soft edge; only the part of the canvas around them is touched."""
    corners = np.concatenate(shapes) * _SUPERSAMPLING
    margin = math.ceil(4 * blur_pixels * _SUPERSAMPLING) + 2
    left, top = np.maximum(np.floor(corners.min(axis=0)).astype(int) - margin, 0)
    right, bottom = np.ceil(corners.max(axis=0)).astype(int) + margin
    part = canvas[top : max(bottom, 0), left : max(right, 0)]
    if part.size == 0:
        return
    mask = np.zeros(part.shape[:2], np.uint8)
    for shape in shapes:
        local = shape - np.array([left, top]) / _SUPERSAMPLING
        scaled = np.round(local * _SUPERSAMPLING * 2**_SUBPIXEL_BITS).astype(np.int32)
        cv2.fillPoly(mask, [scaled], 255, cv2.LINE_AA, _SUBPIXEL_BITS)
    soft = cv2.GaussianBlur(mask, (0, 0), max(blur_pixels * _SUPERSAMPLING, 0.3))
    part[:] = (part * (1 - share * (soft[..., None] / np.float32(255)))).astype(np.uint8)


def _draw_ground(
    rng: np.random.Generator,
    size_wh: tuple[int, int],
    main: _Road,
    side: _Road,
    sun: tuple[float, float],
) -> Picture:
    shape = size_wh[1] * _SUPERSAMPLING, size_wh[0] * _SUPERSAMPLING
    metre = main.pixels_per_metre * _SUPERSAMPLING
    relief = 9 * _grain(rng, shape, metre * 6) + 5 * _grain(rng, shape, metre * 0.7)
    lawn = np.array([104, 122, 74]) + rng.uniform(-10, 10, 3)
    canvas = _textured(lawn, relief)
    roofs = _draw_buildings(rng, canvas, main, side, sun)
    for road in (side, main):
        reach, edge = road.reach_metres, road.half_width_metres
        for half_width, colour in (
            (edge + _PAVEMENT_METRES, (158, 154, 148)),
            (edge + 0.15, (188, 186, 180)),
        ):
            _fill(
                canvas, road.to_pixels(_rectangle(-reach, -half_width, reach, half_width)), colour
            )
    asphalt = float(rng.uniform(112, 142))
    for road in (side, main):
        reach, edge = road.reach_metres, road.half_width_metres
        _fill(canvas, road.to_pixels(_rectangle(-reach, -edge, reach, edge)), (0, 0, 0))
    surface = _textured(
        np.array([asphalt, asphalt + 1, asphalt + 4]),
        4 * _grain(rng, shape, metre * 5) + 3 * _grain(rng, shape, metre * 0.25),
    )
    black = (canvas == 0).all(axis=2)
    canvas[black] = surface[black]
    _draw_markings(canvas, side, main)
    _draw_markings(canvas, main, side)
    _draw_trees(rng, canvas, (main, side), roofs, sun)
    grit = 3 * _grain(rng, shape, 2.0)
    return np.clip(canvas + grit[..., None], 0, 255).astype(np.uint8)


def _grain(
    rng: np.random.Generator, shape: tuple[int, int], cell_pixels: float
) -> npt.NDArray[np.float32]:
    """Smooth noise of unit strength whose patches measure about `cell_pixels`."""
    coarse = [max(2, math.ceil(side / max(cell_pixels, 1))) for side in shape]
    noise = rng.normal(0, 1, coarse).astype(np.float32)
    return cv2.resize(noise, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)


def _textured(colour: npt.NDArray[np.float64], relief: npt.NDArray[np.float32]) -> Picture:
    return np.clip(colour.astype(np.float32) + relief[..., None], 1, 255).astype(np.uint8)


def _draw_markings(canvas: Picture, road: _Road, other: _Road) -> None:
    half = _MARKING_METRES / 2
    clear_metres = other.half_width_metres + 1.2
    crossing = road.to_metres(other.centre)[0]
    for line in range(road.lanes + 1):
        across = (line - road.lanes / 2) * _LANE_METRES
        at_edge, middle = line in (0, road.lanes), line * 2 == road.lanes
        dash, step = (1e9, 1e9) if at_edge or (middle and road.lanes > 2) else (3.0, 7.5)
        start = -road.reach_metres
        while start < road.reach_metres:
            end = min(start + dash, road.reach_metres)
            for x1, x2 in (
                (start, min(end, crossing - clear_metres)),
                (max(start, crossing + clear_metres), end),
            ):
                if x2 > x1:
                    _fill(
                        canvas,
                        road.to_pixels(_rectangle(x1, across - half, x2, across + half)),
                        _MARKING_COLOUR,
                    )
            start += step
    for across, along in (
        (-road.half_width_metres, crossing + clear_metres),
        (0.0, crossing - clear_metres - _STOP_LINE_METRES),
    ):
        stop_line = _rectangle(
            along, across + 0.15, along + _STOP_LINE_METRES, across + road.half_width_metres - 0.15
        )
        _fill(canvas, road.to_pixels(stop_line), _MARKING_COLOUR)


def _clearance_metres(point: Points, roads: tuple[_Road, ...]) -> float:
    """Metres between a point of the picture and the outer edge of the nearest pavement."""
    return min(
        abs(road.to_metres((float(point[0]), float(point[1])))[1])
        - road.half_width_metres
        - _PAVEMENT_METRES
        for road in roads
    )


def _draw_buildings(
    rng: np.random.Generator, canvas: Picture, main: _Road, side: _Road, sun: tuple[float, float]
) -> list[Points]:
    """Rows of houses along the main road; returns the outlines of their roofs in pixels."""
    roofs: list[Points] = []
    row_metres = 19.0
    for row in (-3, -2, -1, 1, 2, 3):
        across = math.copysign(
            main.half_width_metres + _PAVEMENT_METRES + 9.5 + (abs(row) - 1) * row_metres, row
        )
        along = -main.reach_metres
        while along < main.reach_metres:
            length, depth = float(rng.uniform(9, 17)), float(rng.uniform(8, 11.5))
            corners = _rectangle(along, across - depth / 2, along + length, across + depth / 2)
            along += length + float(rng.uniform(4, 12))
            outline = main.to_pixels(corners)
            clearance_metres = min(_clearance_metres(corner, (main, side)) for corner in outline)
            if clearance_metres > 1.5 and rng.random() < 0.85:
                _draw_building(rng, canvas, main, corners, sun)
                roofs.append(outline)
    return roofs


def _draw_building(
    rng: np.random.Generator,
    canvas: Picture,
    road: _Road,
    corners: Points,
    sun: tuple[float, float],
) -> None:
    metre = road.pixels_per_metre
    outline = road.to_pixels(corners)
    shift = np.array(sun) * metre * float(rng.uniform(2, 4))
    hull = cv2.convexHull(np.concatenate((outline, outline + shift)).astype(np.float32))
    _darken(canvas, [hull.reshape(-1, 2).astype(float)], metre * 0.25, 0.55)
    colour = _ROOF_COLOURS[rng.integers(len(_ROOF_COLOURS))]
    colour = _shade(colour, float(rng.uniform(0.88, 1.1)))
    (x1, y1), (x2, y2) = corners[0], corners[2]
    middle = (y1 + y2) / 2
    if rng.random() < 0.3:  # a flat roof with a parapet
        _fill(canvas, outline, _shade(colour, 1.15))
        _fill(canvas, road.to_pixels(_rectangle(x1 + 0.5, y1 + 0.5, x2 - 0.5, y2 - 0.5)), colour)
        return
    _fill(canvas, outline, _shade(colour, 0.82))
    _fill(canvas, road.to_pixels(_rectangle(x1, y1, x2, middle)), _shade(colour, 1.08))
    for course in np.arange(y1 + 0.8, y2, 0.8):  # rows of tiles
        tone = _shade(colour, 1.0 if course < middle else 0.76)
        _fill(canvas, road.to_pixels(_rectangle(x1, course, x2, course + 0.12)), tone)
    _fill(
        canvas,
        road.to_pixels(_rectangle(x1, middle - 0.12, x2, middle + 0.12)),
        _shade(colour, 1.2),
    )


def _draw_trees(
    rng: np.random.Generator,
    canvas: Picture,
    roads: tuple[_Road, ...],
    roofs: list[Points],
    sun: tuple[float, float],
) -> None:
    height, width = (side_pixels / _SUPERSAMPLING for side_pixels in canvas.shape[:2])
    metre = roads[0].pixels_per_metre
    for _ in range(int(width * height / (metre * 11) ** 2)):
        point = rng.uniform((0, 0), (width, height))
        radius = float(rng.uniform(1.4, 3.2))
        if _clearance_metres(point, roads) < radius * 0.9 or _on_roof(point, roofs, radius * metre):
            continue
        _draw_tree(rng, canvas, point, radius * metre, sun)


def _on_roof(point: Points, roofs: list[Points], radius_pixels: float) -> bool:
    place = float(point[0]), float(point[1])
    return any(
        cv2.pointPolygonTest(roof.astype(np.float32), place, True) > -0.6 * radius_pixels
        for roof in roofs
    )


def _draw_tree(
    rng: np.random.Generator,
    canvas: Picture,
    point: Points,
    radius_pixels: float,
    sun: tuple[float, float],
) -> None:
    def disc(centre: Points, radius: float) -> Points:
        angles = np.linspace(0, 2 * math.pi, 14, endpoint=False)
        wobble = rng.uniform(0.85, 1.12, len(angles)) * radius
        return centre + np.column_stack((np.cos(angles), np.sin(angles))) * wobble[:, None]

    towards_shadow = np.array(sun)
    _darken(
        canvas,
        [disc(point + towards_shadow * radius_pixels * 0.7, radius_pixels)],
        radius_pixels * 0.12,
    )
    green = np.array([58, 84, 44]) + rng.uniform(-12, 12, 3)
    for _ in range(16):
        offset = rng.normal(0, 0.38, 2) * radius_pixels
        # Leaves on the side of the sun are the brighter ones.
        light = 1.0 - 0.35 * float(offset @ towards_shadow) / radius_pixels
        tone = _shade(
            (int(green[0]), int(green[1]), int(green[2])), light * rng.uniform(0.85, 1.15)
        )
        _fill(canvas, disc(point + offset, radius_pixels * float(rng.uniform(0.3, 0.55))), tone)
