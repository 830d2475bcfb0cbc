"""Labelled images from a folder in the format of YOLO or of COCO.

YOLO: a text file per image with a line `class cx cy width height` for each object, relative to
the image's size. It lies in a folder `labels` beside the folder `images`, at any depth, or beside
the image. An image without such a file shows nothing. `data.yaml` may name the classes; without
one their numbers are those of the model.

COCO: a JSON file with `images`, `annotations` and `categories`, in the folder, in its subfolder
`annotations`, or named itself.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from inference.evaluation.errors import EvaluationDataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
NUMBERS_PER_BOX = 5

Boxes = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LabelledImage:
    """An image and what it shows.

    `class_ids` int (n,) of the data's classes. `boxes_xywh` float (n, 4): left, top, width and
    height, as shares of the image's size when `is_relative`, else in pixels. `areas` float (n,)
    in square pixels and `is_crowd` bool (n,) come with COCO's annotations; the area of a relative
    box is that of the box. `size_wh` in pixels, where the labels name it.
    """

    path: Path
    class_ids: npt.NDArray[np.int64]
    boxes_xywh: Boxes
    is_relative: bool = True
    areas: npt.NDArray[np.float64] | None = None
    is_crowd: npt.NDArray[np.bool_] | None = None
    size_wh: tuple[int, int] | None = None

    def kept(self, keep: npt.NDArray[np.bool_]) -> LabelledImage:
        """The same image with some of its labels."""
        return replace(
            self,
            class_ids=self.class_ids[keep],
            boxes_xywh=self.boxes_xywh[keep],
            areas=None if self.areas is None else self.areas[keep],
            is_crowd=None if self.is_crowd is None else self.is_crowd[keep],
        )


@dataclass(frozen=True)
class LabelledData:
    """Labelled images; `class_names` by class id, None where the data do not name them.

    `left_out` counts the boxes, by class, that are not measured.
    """

    images: tuple[LabelledImage, ...]
    class_names: dict[int, str] | None
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def object_count(self) -> int:
        """How many boxes there are."""
        return sum(len(image.class_ids) for image in self.images)


def read_data(source: Path, *, only: Sequence[str] = ()) -> LabelledData:
    """The labelled images of a folder or of a COCO file, in the order of their names.

    `only`: patterns of file names, such as `MOS15*`, of which one must fit. Raises
    EvaluationDataError.
    """
    if not source.exists():
        raise EvaluationDataError(f"There is no folder or file {source}.")
    annotations = _coco_file(source)
    data = _read_yolo(source) if annotations is None else _read_coco(annotations)
    images = tuple(
        sorted(
            (one for one in data.images if not only or _fits(one.path, only)),
            key=lambda one: one.path,
        )
    )
    if not images:
        raise EvaluationDataError(f"No image in {source} fits {', '.join(only)}.")
    return replace(data, images=images)


def for_model(
    data: LabelledData, model_class_names: Sequence[str], *, ignored: Iterable[str] = ()
) -> LabelledData:
    """The data with the model's class ids, matched by name where the data name their classes.

    `ignored`: names or numbers of classes that are left out, as are those that the model does not
    know. Raises EvaluationDataError when nothing is left to measure, or when `ignored` names a
    class that is in neither the data nor the model.
    """
    names = data.class_names
    if names is None:
        names = dict(enumerate(model_class_names))
    by_name = {name.casefold(): class_id for class_id, name in enumerate(model_class_names)}
    ignored_words = {word.casefold() for word in ignored}
    present = {int(one) for image in data.images for one in image.class_ids}
    _check_ignored(ignored_words, {**dict.fromkeys(present, ""), **names})
    new_ids: dict[int, int] = {}
    for class_id in present:
        name = names.get(class_id, "").casefold()
        if name in by_name and not {name, str(class_id)} & ignored_words:
            new_ids[class_id] = by_name[name]
    left_out: Counter[str] = Counter()
    images = []
    for image in data.images:
        keep = np.array([int(one) in new_ids for one in image.class_ids], bool)
        for one in image.class_ids[~keep]:
            left_out[names.get(int(one), f"class {one}")] += 1
        kept = image.kept(keep)
        renumbered = np.array([new_ids[int(one)] for one in kept.class_ids], np.int64)
        images.append(replace(kept, class_ids=renumbered))
    measured = replace(
        data,
        images=tuple(images),
        class_names=dict(enumerate(model_class_names)),
        left_out=dict(left_out),
    )
    if not measured.object_count:
        raise EvaluationDataError(_nothing_left(left_out, model_class_names))
    return measured


def _check_ignored(ignored: set[str], names: dict[int, str]) -> None:
    known = {name.casefold() for name in names.values()} | {str(one) for one in names}
    if unknown := sorted(ignored - known):
        raise EvaluationDataError(
            f"No class of the data is called {', '.join(unknown)}; there are "
            f"{', '.join(name or f'class {one}' for one, name in sorted(names.items()))}."
        )


def _nothing_left(left_out: Counter[str], model_class_names: Sequence[str]) -> str:
    if not left_out:
        return "The data have no label at all, so there is nothing to measure."
    return (
        f"None of the data's classes ({', '.join(sorted(left_out))}) is measured: the model knows "
        f"{', '.join(model_class_names)}."
    )


def _fits(path: Path, patterns: Sequence[str]) -> bool:
    return any(fnmatch(path.name, pattern) or fnmatch(path.stem, pattern) for pattern in patterns)


# -- YOLO ----------------------------------------------------------------------------------------


def _read_yolo(folder: Path) -> LabelledData:
    images, labelled_count = [], 0
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
            labels = _label_file(path, folder)
            labelled_count += labels is not None
            images.append(_yolo_image(path, labels))
    if not images:
        raise EvaluationDataError(f"There is no image in {folder}.")
    if not labelled_count:
        raise EvaluationDataError(
            f"None of the {len(images)} images in {folder} has a label file: neither in a folder "
            "labels beside the folder images, nor beside the image, nor is there a COCO file."
        )
    return LabelledData(tuple(images), _yolo_class_names(folder))


def _label_file(image: Path, folder: Path) -> Path | None:
    """The label file of an image: by the last folder `images` of its path, or beside it."""
    parts = list(image.relative_to(folder).with_suffix(".txt").parts)
    candidates = [image.with_suffix(".txt")]
    for position in range(len(parts) - 2, -1, -1):
        if parts[position] == "images":
            candidates.insert(
                0, folder.joinpath(*parts[:position], "labels", *parts[position + 1 :])
            )
            break
    if folder.name == "images":  # the folder of images was named rather than the one above it
        candidates.insert(0, folder.parent.joinpath("labels", *parts))
    return next((one for one in candidates if one.is_file()), None)


def _yolo_image(path: Path, labels: Path | None) -> LabelledImage:
    rows = [] if labels is None else _yolo_rows(labels)
    table = np.array(rows, np.float64).reshape(-1, NUMBERS_PER_BOX)
    sizes = table[:, 3:]
    boxes = np.concatenate((table[:, 1:3] - sizes / 2, sizes), axis=1)
    return LabelledImage(path, table[:, 0].astype(np.int64), boxes)


def _yolo_rows(labels: Path) -> list[list[float]]:
    try:
        lines = labels.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationDataError(f"{labels} cannot be read as text: {error}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            rows.append(_yolo_row(line.split(), f"{labels}, line {number}"))
    return rows


def _yolo_row(words: list[str], where: str) -> list[float]:
    if len(words) != NUMBERS_PER_BOX:
        raise EvaluationDataError(
            f"{where}: {len(words)} words; a box has five: class, centre x and y, width, height."
        )
    try:
        row = [float(word) for word in words]
    except ValueError:
        raise EvaluationDataError(f"{where}: {' '.join(words)!r} are not five numbers.") from None
    class_id, *box = row
    if not (np.isfinite(row).all() and class_id >= 0 and class_id == int(class_id)):
        raise EvaluationDataError(f"{where}: the class {words[0]} is no whole number from 0 on.")
    # Boxes that stick out of the image are common in labels, and measured as they are.
    if min(box) < 0 or max(box) > 1 or min(box[2:]) == 0:
        raise EvaluationDataError(
            f"{where}: {' '.join(words[1:])} is no box: centre, width and height are shares of "
            "the image's size, from 0 to 1, and neither width nor height is 0."
        )
    return row


def _yolo_class_names(folder: Path) -> dict[int, str] | None:
    """The names in `data.yaml`, in the folder or the one above; a list or a mapping from ids."""
    path = next(
        (one for one in (folder / "data.yaml", folder.parent / "data.yaml") if one.is_file()), None
    )
    if path is None:
        return None
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise EvaluationDataError(f"{path} cannot be read: {error}") from error
    names = document.get("names") if isinstance(document, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not all(str(one).isdigit() for one in names):
        raise EvaluationDataError(f"{path} names no classes: `names` must be a list or a mapping.")
    return {int(class_id): str(name) for class_id, name in names.items()}


# -- COCO ----------------------------------------------------------------------------------------


def _coco_file(source: Path) -> Path | None:
    """The annotations of a COCO data set; None where the folder has none."""
    if source.is_file():
        return source
    if (source / "labels").is_dir():
        return None  # whatever JSON lies beside YOLO's labels
    found = [
        path
        for folder in (source, source / "annotations")
        for path in sorted(folder.glob("*.json"))
    ]
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(source)) for path in found)
        raise EvaluationDataError(f"{source} has several annotation files; name one of {names}.")
    return found[0] if found else None


def _read_coco(path: Path) -> LabelledData:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        images = {int(one["id"]): one for one in document["images"]}
        names = {int(one["id"]): str(one["name"]) for one in document["categories"]}
        by_image: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in images}
        for annotation in document["annotations"]:
            _check_annotation(annotation, path, images=images, names=names)
            by_image[int(annotation["image_id"])].append(annotation)
        found = tuple(_coco_image(images[one], by_image[one], path) for one in images)
    except OSError as error:
        raise EvaluationDataError(f"{path} cannot be read: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise EvaluationDataError(
            f"{path} is no COCO file: {type(error).__name__}: {error}"
        ) from error
    if not found:
        raise EvaluationDataError(f"{path} lists no image.")
    return LabelledData(found, names)


def _check_annotation(
    annotation: dict[str, Any], path: Path, *, images: dict[int, Any], names: dict[int, str]
) -> None:
    where = f"{path}, annotation {annotation.get('id')}"
    if int(annotation["image_id"]) not in images:
        raise EvaluationDataError(f"{where}: there is no image {annotation['image_id']}.")
    if int(annotation["category_id"]) not in names:
        raise EvaluationDataError(f"{where}: there is no category {annotation['category_id']}.")
    box = np.array(annotation["bbox"], np.float64)
    if box.shape != (4,) or not np.isfinite(box).all() or (box[2:] <= 0).any():
        raise EvaluationDataError(
            f"{where}: {annotation['bbox']} is no box of left, top, width and height in pixels."
        )


def _coco_image(
    image: dict[str, Any], annotations: list[dict[str, Any]], path: Path
) -> LabelledImage:
    boxes = np.array([one["bbox"] for one in annotations], np.float64).reshape(-1, 4)
    areas = [one.get("area", box[2] * box[3]) for one, box in zip(annotations, boxes, strict=True)]
    return LabelledImage(
        _coco_image_path(str(image["file_name"]), path),
        np.array([int(one["category_id"]) for one in annotations], np.int64),
        boxes,
        is_relative=False,
        areas=np.array(areas, np.float64),
        is_crowd=np.array([bool(one.get("iscrowd", 0)) for one in annotations], bool),
        size_wh=(int(image["width"]), int(image["height"])),
    )


def _coco_image_path(name: str, annotations: Path) -> Path:
    """Where the image lies: beside the file, in `images`, or in the folder of its split."""
    here, above = annotations.parent, annotations.parent.parent
    split = annotations.stem.removeprefix("instances_")
    folders = [here, here / "images", above, above / "images", above / split]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise EvaluationDataError(
        f"The image {name} of {annotations} is in none of {', '.join(map(str, folders))}."
    )
