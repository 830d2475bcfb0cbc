"""Draws what small vehicles are mistaken for: foliage, windows, roof lights, lettering, stripes.

A network that has seen few streets takes any small bright or dark block for a car. These pictures
hold blocks of every kind and no vehicle.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import cv2
import numpy as np

from inference.pipeline.types import Image
from inference.training.data import Picture, picture_of

_SIDE_PIXELS = 640
Rng = np.random.Generator


def draw_clutter(seeds: Iterable[int]) -> tuple[Picture, ...]:
    """One picture without vehicles for each seed, the kinds taken in turn."""
    kinds = (_foliage, _facade, _roof, _lettering, _stripes)
    pictures = []
    for index, seed in enumerate(seeds):
        rng = np.random.default_rng(seed)
        canvas = kinds[index % len(kinds)](rng)
        noise = rng.normal(0, 3, canvas.shape[:2])[..., None]
        image = np.clip(cv2.GaussianBlur(canvas, (0, 0), 0.7) + noise, 0, 255).astype(np.uint8)
        pictures.append(picture_of(f"clutter-{seed}", image))
    return tuple(pictures)


def _colour(rng: Rng, low: int = 20, high: int = 235) -> tuple[int, int, int]:
    grey = rng.uniform(low, high)
    red, green, blue = np.clip(grey + rng.normal(0, 18, 3), 0, 255)
    return int(red), int(green), int(blue)


def _ground(rng: Rng, colour: tuple[int, int, int], relief: float) -> Image:
    canvas = np.full((_SIDE_PIXELS, _SIDE_PIXELS, 3), colour, np.float32)
    for cells in (6, 40, 160):
        grain = rng.normal(0, relief, (cells, cells)).astype(np.float32)
        canvas += cv2.resize(grain, (_SIDE_PIXELS, _SIDE_PIXELS), interpolation=cv2.INTER_CUBIC)[
            ..., None
        ]
    return np.clip(canvas, 0, 255).astype(np.uint8)


def _foliage(rng: Rng) -> Image:
    """Leaves and branches against light or shade: holes and spots of all sizes."""
    base = rng.uniform((25, 45, 15), (85, 110, 70))
    canvas = _ground(rng, (int(base[0]), int(base[1]), int(base[2])), 12)
    for _ in range(1800):
        tone = base * rng.uniform(0.3, 1.9) if rng.random() < 0.93 else rng.uniform(180, 240, 3)
        centre = rng.integers(0, _SIDE_PIXELS, 2).tolist()
        axes = rng.integers(2, 14, 2).tolist()
        cv2.ellipse(
            canvas, centre, axes, float(rng.uniform(0, 180)), 0, 360, tone.tolist(), -1, cv2.LINE_AA
        )
    return canvas


def _block(
    rng: Rng, canvas: Image, centre: tuple[float, float], sides: tuple[float, float], angle: float
) -> None:
    """A block, often with a frame, a bar or a darker half, as windows and boxes have."""
    turned = cv2.boxPoints((centre, sides, angle))
    cv2.fillPoly(canvas, [np.round(turned).astype(np.int32)], _colour(rng), cv2.LINE_AA)
    if rng.random() < 0.6:
        thickness = int(rng.integers(1, 3))
        frame = [np.round(turned).astype(np.int32)]
        cv2.polylines(canvas, frame, True, _colour(rng), thickness, cv2.LINE_AA)
    if rng.random() < 0.5:
        inner = sides[0] * float(rng.uniform(0.1, 0.5)), sides[1] * float(rng.uniform(0.6, 0.95))
        part = cv2.boxPoints((centre, inner, angle))
        cv2.fillPoly(canvas, [np.round(part).astype(np.int32)], _colour(rng), cv2.LINE_AA)


def _facade(rng: Rng) -> Image:
    """Rows of alike windows and balconies."""
    canvas = _ground(rng, _colour(rng, 60, 220), 5)
    step_x, step_y = rng.uniform(14, 70, 2)
    sides = step_x * float(rng.uniform(0.3, 0.8)), step_y * float(rng.uniform(0.3, 0.75))
    look = int(rng.integers(2**31))
    for y in np.arange(step_y / 2, _SIDE_PIXELS, step_y):
        for x in np.arange(step_x / 2, _SIDE_PIXELS, step_x):
            same = np.random.default_rng(look if rng.random() < 0.8 else int(rng.integers(2**31)))
            _block(same, canvas, (float(x), float(y)), sides, 0.0)
    return canvas


def _roof(rng: Rng) -> Image:
    """A flat roof with lights, chimneys and boxes in rows or anywhere, and their shadows."""
    canvas = _ground(rng, _colour(rng, 70, 190), 7)
    angle = float(rng.uniform(0, 180))
    # Squares, nearly: a long block with a shadow is what a blurred car is.
    length = float(rng.uniform(8, 30))
    sides = length, length * float(rng.uniform(0.75, 1.0))
    shade = rng.uniform(-8, 8, 2)
    for _ in range(int(rng.integers(15, 70))):
        x, y = rng.uniform(0, _SIDE_PIXELS, 2)
        shadow = cv2.boxPoints(((float(x + shade[0]), float(y + shade[1])), sides, angle))
        cv2.fillPoly(canvas, [np.round(shadow).astype(np.int32)], (40, 42, 46), cv2.LINE_AA)
        _plain(rng, canvas, (float(x), float(y)), sides, angle)
    return canvas


def _plain(
    rng: Rng, canvas: Image, centre: tuple[float, float], sides: tuple[float, float], angle: float
) -> None:
    # Of one tone: with windows drawn in, a box on a roof would be a vehicle.
    points = np.round(cv2.boxPoints((centre, sides, angle))).astype(np.int32)
    cv2.fillPoly(canvas, [points], _colour(rng, 90, 245), cv2.LINE_AA)


def _lettering(rng: Rng) -> Image:
    """Signs and advertisements, light on dark or dark on light."""
    dark, light = _colour(rng, 10, 70), _colour(rng, 190, 245)
    paper, ink = (dark, light) if rng.random() < 0.5 else (light, dark)
    canvas = _ground(rng, paper, 3)
    y = 0.0
    while y < _SIDE_PIXELS:
        size = float(rng.uniform(0.4, 1.8))
        letters = "".join(rng.choice(list("ABCDEHKMNOPSTX023568"), 40))
        y += 26 * size + float(rng.uniform(2, 20))
        thick = int(rng.integers(1, 5))
        cv2.putText(canvas, letters, (-9, int(y)), 0, size, ink, thick, cv2.LINE_AA)
    return canvas


def _stripes(rng: Rng) -> Image:
    """Crossings, parking bays, fences and stairs: bars side by side, and dashes in a row."""
    canvas = _ground(rng, _colour(rng, 60, 150), 5)
    for _ in range(int(rng.integers(4, 12))):
        angle, centre = float(rng.uniform(0, 2 * math.pi)), rng.uniform(0, _SIDE_PIXELS, 2)
        long, wide = float(rng.uniform(8, 80)), float(rng.uniform(2, 14))
        along = np.array([math.cos(angle), math.sin(angle)])
        across = np.array([-along[1], along[0]])
        in_a_row = rng.random() < 0.4
        direction = along * long * rng.uniform(1.5, 3) if in_a_row else across * wide * 2
        colour = _colour(rng, 170, 250) if rng.random() < 0.8 else _colour(rng, 20, 60)
        for index in range(int(rng.integers(3, 14))):
            x, y = centre + direction * index
            points = cv2.boxPoints(((float(x), float(y)), (long, wide), math.degrees(angle)))
            cv2.fillPoly(canvas, [np.round(points).astype(np.int32)], colour, cv2.LINE_AA)
    return canvas
