"""Labelled images of a COCO file.

A JSON file with `images`, `annotations` and `categories`, in a folder, in its subfolder
`annotations`, or named itself. Boxes without an area, which nothing can match, are left out. A
label that does not name its area has that of its box.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from inference.evaluation.data import LabelledData, LabelledImage
from inference.evaluation.errors import EvaluationDataError

# Of files that macOS writes beside others on foreign disks, under the same names.
_MACOS_PREFIX = "._"


def find_coco(source: Path) -> Path | None:
    """The annotations of a COCO data set; None where the folder has none.

    Raises EvaluationDataError for a folder that has several.
    """
    if source.is_file():
        return source
    if (source / "labels").is_dir():
        return None  # whatever JSON lies beside YOLO's labels
    found = [
        path
        for folder in (source, source / "annotations")
        for path in sorted(folder.glob("*.json"))
        if not path.name.startswith(_MACOS_PREFIX)
    ]
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(source)) for path in found)
        raise EvaluationDataError(f"{source} has several annotation files; name one of {names}.")
    return found[0] if found else None


def read_coco(path: Path) -> LabelledData:
    """The images that the file lists, by id, with their labels; raises EvaluationDataError."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        images = _by_id(document["images"], f"{path}, images")
        categories = _by_id(document["categories"], f"{path}, categories")
        names = {class_id: str(one["name"]) for class_id, one in categories.items()}
        by_image: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in images}
        for annotation in document["annotations"]:
            _check_annotation(annotation, path, images=images, names=names)
            by_image[int(annotation["image_id"])].append(annotation)
        found = tuple(_coco_image(images[one], by_image[one], path) for one in sorted(images))
    except OSError as error:
        raise EvaluationDataError(f"{path} cannot be read: {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise EvaluationDataError(
            f"{path} is no COCO file: {type(error).__name__}: {error}"
        ) from error
    if not found:
        raise EvaluationDataError(f"{path} lists no image.")
    return LabelledData(found, names)


def _by_id(rows: list[dict[str, Any]], where: str) -> dict[int, dict[str, Any]]:
    """Raises EvaluationDataError where others have the same id, as in files put together."""
    by_id: dict[int, dict[str, Any]] = {}
    for row in rows:
        if by_id.setdefault(int(row["id"]), row) != row:
            raise EvaluationDataError(f"{where}: there are several of the id {row['id']}.")
    return by_id


def _check_annotation(
    annotation: dict[str, Any], path: Path, *, images: dict[int, Any], names: dict[int, str]
) -> None:
    where = f"{path}, annotation {annotation.get('id')}"
    if int(annotation["image_id"]) not in images:
        raise EvaluationDataError(f"{where}: there is no image {annotation['image_id']}.")
    if int(annotation["category_id"]) not in names:
        raise EvaluationDataError(f"{where}: there is no category {annotation['category_id']}.")
    box = np.array(annotation["bbox"], np.float64)
    if box.shape != (4,) or not np.isfinite(box).all() or (box[2:] < 0).any():
        raise EvaluationDataError(
            f"{where}: {annotation['bbox']} is no box of left, top, width and height in pixels."
        )
    area = annotation.get("area")
    if area is not None and not 0 <= float(area) < np.inf:  # NaN fails this comparison, too
        raise EvaluationDataError(f"{where}: {area} is no area in square pixels.")


def _coco_image(
    image: dict[str, Any], annotations: list[dict[str, Any]], path: Path
) -> LabelledImage:
    boxes = np.array([one["bbox"] for one in annotations], np.float64).reshape(-1, 4)
    areas = boxes[:, 2] * boxes[:, 3]
    for position, one in enumerate(annotations):
        if one.get("area") is not None:
            areas[position] = one["area"]
    has_area = boxes[:, 2:].min(axis=1) > 0
    labelled = LabelledImage(
        _coco_image_path(str(image["file_name"]), path),
        np.array([int(one["category_id"]) for one in annotations], np.int64),
        boxes,
        is_relative=False,
        areas=areas,
        is_crowd=np.array([bool(int(one.get("iscrowd") or 0)) for one in annotations], bool),
        size_wh=(int(image["width"]), int(image["height"])),
        empty_box_count=int((~has_area).sum()),
    )
    return labelled.kept(has_area)


def _coco_image_path(name: str, annotations: Path) -> Path:
    """Where the image lies: beside the file, in `images`, or in the folder of its split.

    That one lies beside the file's own folder (COCO) or in `images` there (CVAT).
    """
    here, above = annotations.parent, annotations.parent.parent
    split = annotations.stem.removeprefix("instances_")
    folders = [here, here / "images"]
    folders += [above, above / "images", above / split, above / "images" / split]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise EvaluationDataError(
        f"The image {name} of {annotations} is in none of {', '.join(map(str, folders))}."
    )
