"""Labelled images in the format of YOLO, as Ultralytics lays them out.

A text file per image has a line for each object: `class cx cy width height`, or the class and the
corners of a polygon, of which the upright box counts; all relative to the image's size. The file
lies in the tree `labels` beside the tree `images`, or beside the image. An image without one shows
nothing. `data.yaml`, in the folder or up to two above it, may name the classes, or else
`classes.txt`, a name in each line, in one of these (as Label Studio writes it) or beside the labels
(as LabelImg does); without either their numbers are those of the model. `data.yaml` may also name
the parts `train`, `val` and `test`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from inference.evaluation.data import LabelledData, LabelledImage
from inference.evaluation.errors import EvaluationDataError

DATA_FILE = "data.yaml"
CLASSES_FILE = "classes.txt"
SPLITS = ("train", "val", "test")
ALL_SPLITS = "all"
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
NUMBERS_PER_BOX = 5
FEWEST_CORNERS = 3
_LARGEST_CLASS_ID = 2**31 - 1
FOLDERS_ABOVE = 2
# Shares are rounded when they are written, and then clipped when they are read.
ROUNDING_SHARE = 1e-3


def read_folder(folder: Path) -> LabelledData:
    """Every image in the folder, at any depth; raises EvaluationDataError."""
    images = _images_in(folder)
    if not images:
        raise EvaluationDataError(f"There is no image in {folder}.")
    return LabelledData(_labelled(images, folder), _class_names_near(folder, images))


def names_splits(data_file: Path) -> bool:
    """Whether a `data.yaml` names parts of the data; raises EvaluationDataError."""
    document = _document(data_file)
    return any(document.get(name) for name in SPLITS)


def read_split(data_file: Path, split: str) -> LabelledData:
    """The images of one part that a `data.yaml` names, or of "all", in the order of their names.

    A part is a folder, a text file that lists images, or a list of these. They are relative to
    `path`, and that to the file's own folder. Raises EvaluationDataError.
    """
    document = _document(data_file)
    named = [name for name in SPLITS if document.get(name)]
    if split != ALL_SPLITS and split not in named:
        told = f"it names {', '.join(named)}" if named else "it names none"
        raise EvaluationDataError(f"{data_file} names no split {split}; {told}.")
    root = data_file.parent / str(document.get("path") or "")
    images: dict[Path, None] = {}
    for name in named if split == ALL_SPLITS else [split]:
        places = document[name] if isinstance(document[name], list) else [document[name]]
        for place in places:
            found = _images_of(str(place), root, f"{data_file}, {name}")
            images |= dict.fromkeys(found)
    labelled = _labelled(sorted(images), data_file)
    return LabelledData(labelled, _class_names(document, data_file), split=split)


# -- which images ---------------------------------------------------------------------------------


def _images_in(folder: Path) -> list[Path]:
    # Links are followed, by which people put data sets together, to each folder once: they may lead
    # upwards. What is hidden is passed over: checkpoints of notebooks, and what macOS writes.
    found: list[Path] = []
    visited: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += (Path(place, name) for name in names if not name.startswith("."))
    return [path for path in sorted(found) if _is_image(path)]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def _images_of(place: str, root: Path, where: str) -> list[Path]:
    path = root / place
    if not path.exists() and place.startswith("../"):
        path = root / place.removeprefix("../")  # so Roboflow writes it, and Ultralytics reads it
    if path.is_dir():
        images = _images_in(path)
        if not images:
            raise EvaluationDataError(f"{where}: there is no image in {path}.")
        return images
    if path.is_file() and path.suffix == ".txt":
        return _listed_images(path)
    raise EvaluationDataError(f"{where}: {path} is no folder and no text file that lists images.")


def _listed_images(listing: Path) -> list[Path]:
    images = []
    for number, line in enumerate(_lines(listing), start=1):
        if line.strip():
            image = listing.parent / line.strip()
            if not image.is_file():
                raise EvaluationDataError(f"{listing}, line {number}: there is no image {image}.")
            images.append(image)
    return images


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationDataError(f"{path} cannot be read as text: {error}") from error


# -- what they show -------------------------------------------------------------------------------


def _labelled(images: Iterable[Path], source: Path) -> tuple[LabelledImage, ...]:
    """The images with their labels; raises EvaluationDataError when none has a label file."""
    with_files = [(image, _label_file(image)) for image in images]
    if not any(labels for _, labels in with_files):
        raise EvaluationDataError(
            f"None of the {len(with_files)} images in {source} has a label file: neither in a "
            "folder labels beside the folder images, nor beside the image, nor is there a COCO "
            "file."
        )
    return tuple(_labelled_image(image, labels) for image, labels in with_files)


def _label_file(image: Path) -> Path | None:
    """The label file of an image: by the last folder `images` of its path, or beside it."""
    beside = image.absolute().with_suffix(".txt")
    candidates = [beside]
    folders = beside.parent.parts
    if "images" in folders:
        last = len(folders) - 1 - folders[::-1].index("images")
        candidates.insert(0, Path(*folders[:last], "labels", *beside.parts[last + 1 :]))
    return next((one for one in candidates if one.is_file()), None)


def _labelled_image(path: Path, labels: Path | None) -> LabelledImage:
    rows = []
    for number, line in enumerate(_lines(labels) if labels else (), start=1):
        if line.strip():
            rows.append(_row(line.split(), f"{labels}, line {number}"))
    # Written twice it is one vehicle still, as for Ultralytics.
    table = np.array(list(dict.fromkeys(rows)), np.float64).reshape(-1, NUMBERS_PER_BOX)
    has_area = table[:, 3:].min(axis=1) > 0
    labelled = LabelledImage(path, table[:, 0].astype(np.int64), table[:, 1:]).kept(has_area)
    return replace(
        labelled,
        empty_box_count=int((~has_area).sum()),
        repeated_box_count=len(rows) - len(table),
    )


def _row(words: list[str], where: str) -> tuple[float, ...]:
    """Class, left, top, width and height of a line's words."""
    is_polygon = len(words) > 2 * FEWEST_CORNERS and len(words) % 2 == 1
    if len(words) != NUMBERS_PER_BOX and not is_polygon:
        raise EvaluationDataError(
            f"{where}: {len(words)} words; a box has five: class, centre x and y, width, height; "
            f"a polygon has the class and x and y of at least {FEWEST_CORNERS} corners."
        )
    try:
        class_id, *shares = (float(word) for word in words)
    except ValueError:
        raise EvaluationDataError(f"{where}: {' '.join(words)!r} are not all numbers.") from None
    if not (0 <= class_id <= _LARGEST_CLASS_ID and class_id == int(class_id)):  # nor a NaN
        raise EvaluationDataError(
            f"{where}: the class {words[0]} is no whole number from 0 to {_LARGEST_CLASS_ID}."
        )
    # A NaN fails this comparison, too. Boxes that stick out of the image are common in labels,
    # and measured as they are.
    if not all(-ROUNDING_SHARE <= share <= 1 + ROUNDING_SHARE for share in shares):
        shape = "polygon" if is_polygon else "box"
        raise EvaluationDataError(
            f"{where}: {' '.join(words[1:])} is no {shape}: its numbers are shares of the image's "
            "size, from 0 to 1."
        )
    points = np.clip(np.array(shares), 0, 1).reshape(-1, 2)
    if is_polygon:
        left_top, size = points.min(axis=0), np.ptp(points, axis=0)
    else:
        left_top, size = points[0] - points[1] / 2, points[1]
    return (class_id, *left_top, *size)


# -- which classes ---------------------------------------------------------------------------------


def _class_names_near(folder: Path, images: list[Path]) -> dict[int, str] | None:
    here = folder.absolute()
    places = (here, *list(here.parents)[:FOLDERS_ABOVE])
    for data_file in (place / DATA_FILE for place in places):
        if data_file.is_file():
            return _class_names(_document(data_file), data_file)
    beside_labels = dict.fromkeys(labels.parent for labels in map(_label_file, images) if labels)
    for listing in (place / CLASSES_FILE for place in (*places, *beside_labels)):
        if listing.is_file():
            names = (line.strip() for line in _lines(listing))
            return {class_id: name for class_id, name in enumerate(names) if name}
    return None


def _document(data_file: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(data_file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise EvaluationDataError(f"{data_file} cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise EvaluationDataError(f"{data_file} names nothing: it must be a mapping.")
    return document


def _class_names(document: dict[str, Any], data_file: Path) -> dict[int, str]:
    """The names by class id, of a list or a mapping from ids."""
    names = document.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not all(_is_number(str(one)) for one in names):
        raise EvaluationDataError(
            f"{data_file} names no classes: `names` must be a list or a mapping."
        )
    return {int(class_id): str(name) for class_id, name in names.items()}


def _is_number(word: str) -> bool:
    """Whether it is a whole number from 0 on; `²` is a digit, but none."""
    return word.isascii() and word.isdigit()
