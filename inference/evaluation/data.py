"""Labelled images, and what a model can be measured on of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from inference.evaluation.errors import EvaluationDataError

Boxes = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LabelledImage:
    """An image and what it shows.

    `class_ids` int (n,) of the data's classes. `boxes_xywh` float (n, 4): left, top, width and
    height, as shares of the image's size when `is_relative`, else in pixels. `areas` float (n,)
    in square pixels and `is_crowd` bool (n,) come with COCO's annotations; the area of a relative
    box is that of the box. `size_wh` in pixels, where the labels name it. `empty_box_count`: how
    many boxes were left out because they have no area, `repeated_box_count` because the same file
    has the very same box before.
    """

    path: Path
    class_ids: npt.NDArray[np.int64]
    boxes_xywh: Boxes
    is_relative: bool = True
    areas: npt.NDArray[np.float64] | None = None
    is_crowd: npt.NDArray[np.bool_] | None = None
    size_wh: tuple[int, int] | None = None
    empty_box_count: int = 0
    repeated_box_count: int = 0

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

    `left_out` counts the boxes, by class, that are not measured. `ignored_ids`: what is found of
    these classes does not count either. `split`: which part of a data set it is, where a
    `data.yaml` names the parts.
    """

    images: tuple[LabelledImage, ...]
    class_names: dict[int, str] | None
    left_out: dict[str, int] = field(default_factory=dict)
    ignored_ids: frozenset[int] = frozenset()
    split: str | None = None

    @property
    def object_count(self) -> int:
        """How many boxes there are."""
        return sum(len(image.class_ids) for image in self.images)

    @property
    def empty_box_count(self) -> int:
        """How many boxes were left out because they have no area."""
        return sum(image.empty_box_count for image in self.images)

    @property
    def repeated_box_count(self) -> int:
        """How many boxes were left out because their file has them before."""
        return sum(image.repeated_box_count for image in self.images)


def for_model(
    data: LabelledData, model_class_names: Sequence[str], *, ignored: Iterable[str] = ()
) -> LabelledData:
    """The data with the model's class ids, matched by name where the data name their classes.

    `ignored`: names or numbers of classes that are left out, as are those that the model does not
    know; what the model finds of them is left out as well. Raises EvaluationDataError when nothing
    is left to measure, when `ignored` names a class that is in neither the data nor the model, or
    when the model calls two classes the same.
    """
    names = data.class_names
    if names is None:
        names = dict(enumerate(model_class_names))
    by_name = {name.casefold(): class_id for class_id, name in enumerate(model_class_names)}
    if len(by_name) < len(model_class_names):
        raise EvaluationDataError("The model calls two of its classes the same.")
    ignored_words = {word.casefold() for word in ignored}
    present = {int(one) for image in data.images for one in image.class_ids}
    _check_ignored(ignored_words, {**dict.fromkeys(present, ""), **names}, by_name)
    new_ids: dict[int, int] = {}
    ignored_ids = {by_name[word] for word in ignored_words & by_name.keys()}
    for class_id in present | set(names):
        name = names.get(class_id, "").casefold()
        if name not in by_name:
            continue
        if {name, str(class_id)} & ignored_words:
            ignored_ids.add(by_name[name])
        else:
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
        # Of two classes of the data that are one of the model the other may count.
        ignored_ids=frozenset(ignored_ids.difference(new_ids.values())),
    )
    if not measured.object_count:
        raise EvaluationDataError(_nothing_left(left_out, model_class_names))
    return measured


def _check_ignored(ignored: set[str], names: dict[int, str], of_model: Iterable[str]) -> None:
    known = {name.casefold() for name in names.values()} | {str(one) for one in names}
    if unknown := sorted(ignored.difference(known, of_model)):
        raise EvaluationDataError(
            f"No class of the data or the model is called {', '.join(unknown)}; the data have "
            f"{', '.join(name or f'class {one}' for one, name in sorted(names.items()))}."
        )


def _nothing_left(left_out: Counter[str], model_class_names: Sequence[str]) -> str:
    if not left_out:
        return "The data have no label at all, so there is nothing to measure."
    return (
        f"None of the data's classes ({', '.join(sorted(left_out))}) is measured: the model knows "
        f"{', '.join(model_class_names)}."
    )
