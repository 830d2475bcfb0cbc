"""The metrics of COCO, by pycocotools: the only file that imports it.

Object sizes are COCO's: small below 32 x 32 pixels of the original image, large above 96 x 96.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from inference.evaluation.data import LabelledImage
from inference.pipeline.types import Detections

FEW_DETECTIONS, MANY_DETECTIONS = 100, 500  # per image: COCO's limit, and ours
AREAS = ("all", "small", "medium", "large")
IOU_50, RECALL_80 = 0, 80  # positions among pycocotools' thresholds: 0.50, and 0.80 in hundredths

Curve = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Figures:
    """What pycocotools says of one class, of the mean over classes, or without regard to classes.

    Shares from 0 to 1, None where there is nothing to measure them on. `ap` is the mean over the
    overlaps (IoU) 0.50, 0.55 ... 0.95, and so are the recalls, which COCO calls average recall;
    `recall_50` and `precision_at_recall_80` are at an overlap of 0.50. At most `max_detections`
    an image count, for the recalls as many as their names say.
    """

    max_detections: int
    ap: float | None
    ap_50: float | None
    ap_75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    recall_100: float | None
    recall_500: float | None
    recall_50: float | None
    precision_at_recall_80: float | None


@dataclass(frozen=True)
class Scores:
    """How well a detector did on labelled images.

    `as_coco_counts`: the same at COCO's own limit of 100 detections an image, without regard to
    classes and as the mean over classes. `curves`: precision (101,) at the recalls 0.00, 0.01 ...
    1.00 and an overlap of 0.50, by class, and under "" without regard to classes.
    """

    class_agnostic: Figures
    mean_over_classes: Figures
    by_class: dict[str, Figures]
    as_coco_counts: tuple[Figures, Figures]
    curves: dict[str, Curve]
    sizes: dict[str, int]  # objects: small, medium, large


def score(
    images: Sequence[LabelledImage],
    sizes_wh: Sequence[tuple[int, int]],
    found: Sequence[Detections],
    class_names: Sequence[str],
) -> Scores:
    """Scores of what was `found` in each image, whose real size in pixels is in `sizes_wh`.

    The class ids of labels and detections are positions in `class_names`. Classes without a
    labelled object do not count.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports every step
        truth = _truth(images, sizes_wh, class_names)
        results = _results(truth, found)
        agnostic = _evaluated(truth, results, use_classes=False)
        by_class = _evaluated(truth, results, use_classes=True)
    present = [
        (position, class_names[class_id - 1])
        for position, class_id in enumerate(by_class.params.catIds)
        if (by_class.eval["recall"][:, position] > -1).any()
    ]
    curves = {"": _curve(agnostic, 0)}
    curves |= {name: _curve(by_class, position) for position, name in present}
    return Scores(
        class_agnostic=_figures(agnostic, MANY_DETECTIONS),
        mean_over_classes=_figures(by_class, MANY_DETECTIONS),
        by_class={
            name: _figures(by_class, MANY_DETECTIONS, class_position=position)
            for position, name in present
        },
        as_coco_counts=(
            _figures(agnostic, FEW_DETECTIONS),
            _figures(by_class, FEW_DETECTIONS),
        ),
        curves=curves,
        sizes=_sizes(truth, agnostic),
    )


def _truth(
    images: Sequence[LabelledImage], sizes_wh: Sequence[tuple[int, int]], class_names: Sequence[str]
) -> COCO:
    annotations: list[dict[str, Any]] = []
    for image_id, (image, size_wh) in enumerate(zip(images, sizes_wh, strict=True), start=1):
        scale = np.array([*size_wh, *size_wh]) if image.is_relative else np.ones(4)
        boxes = image.boxes_xywh * scale
        areas = boxes[:, 2] * boxes[:, 3] if image.areas is None else image.areas
        crowds = np.zeros(len(boxes), bool) if image.is_crowd is None else image.is_crowd
        for class_id, box, area, is_crowd in zip(
            image.class_ids, boxes, areas, crowds, strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,  # pycocotools takes an id of 0 for no match
                    "image_id": image_id,
                    "category_id": int(class_id) + 1,
                    "bbox": box.tolist(),
                    "area": float(area),
                    "iscrowd": int(is_crowd),
                }
            )
    return _indexed(
        {
            "images": [{"id": one} for one in range(1, len(images) + 1)],
            "annotations": annotations,
            "categories": [{"id": i, "name": name} for i, name in enumerate(class_names, start=1)],
        }
    )


def _indexed(dataset: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco


def _results(truth: COCO, found: Sequence[Detections]) -> COCO:
    rows = []
    for image_id, detections in enumerate(found, start=1):
        boxes = detections.boxes_xyxy.astype(np.float64)
        table = np.empty((len(detections), 7))
        table[:, 0] = image_id
        table[:, 1:3] = boxes[:, :2]
        table[:, 3:5] = boxes[:, 2:] - boxes[:, :2]
        table[:, 5] = detections.confidences
        table[:, 6] = detections.class_ids + 1
        rows.append(table)
    table = np.concatenate(rows)
    # pycocotools cannot load results without a single one.
    return truth.loadRes(table) if len(table) else _indexed({**truth.dataset, "annotations": []})


def _evaluated(truth: COCO, results: COCO, *, use_classes: bool) -> COCOeval:
    evaluation = COCOeval(truth, results, "bbox")
    evaluation.params.useCats = int(use_classes)
    evaluation.params.maxDets = [FEW_DETECTIONS, MANY_DETECTIONS]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def _figures(
    evaluation: COCOeval, max_detections: int, *, class_position: int | None = None
) -> Figures:
    limit = evaluation.params.maxDets.index(max_detections)
    classes = slice(None) if class_position is None else [class_position]
    precision = evaluation.eval["precision"][:, :, classes]  # overlap, recall, class, area, limit
    recall = evaluation.eval["recall"][:, classes]  # overlap, class, area, limit
    by_area = {
        area: _mean(precision[:, :, :, position, limit]) for position, area in enumerate(AREAS)
    }
    at_75 = int(np.argmin(abs(evaluation.params.iouThrs - 0.75)))
    return Figures(
        max_detections=max_detections,
        ap=by_area["all"],
        ap_50=_mean(precision[IOU_50, :, :, 0, limit]),
        ap_75=_mean(precision[at_75, :, :, 0, limit]),
        ap_small=by_area["small"],
        ap_medium=by_area["medium"],
        ap_large=by_area["large"],
        recall_100=_mean(recall[:, :, 0, evaluation.params.maxDets.index(FEW_DETECTIONS)]),
        recall_500=_mean(recall[:, :, 0, evaluation.params.maxDets.index(MANY_DETECTIONS)]),
        recall_50=_mean(recall[IOU_50, :, 0, limit]),
        precision_at_recall_80=_mean(precision[IOU_50, RECALL_80, :, 0, limit]),
    )


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    """The mean of what could be measured; pycocotools marks the rest with -1."""
    measured = values[values > -1]
    return float(np.mean(measured)) if measured.size else None


def _curve(evaluation: COCOeval, class_position: int) -> Curve:
    curve: Curve = evaluation.eval["precision"][IOU_50, :, class_position, 0, -1]
    return curve


def _sizes(truth: COCO, evaluation: COCOeval) -> dict[str, int]:
    ranges = dict(zip(evaluation.params.areaRngLbl, evaluation.params.areaRng, strict=True))
    areas = [one["area"] for one in truth.dataset["annotations"] if not one["iscrowd"]]
    return {
        name: sum(ranges[name][0] <= area <= ranges[name][1] for area in areas)
        for name in AREAS[1:]
    }
