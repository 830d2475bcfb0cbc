"""Labelled images, from a folder, a `data.yaml` or a COCO file; see `yolo` and `coco`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

from inference.evaluation.coco import find_coco, read_coco
from inference.evaluation.data import LabelledData
from inference.evaluation.errors import EvaluationDataError
from inference.evaluation.yolo import DATA_FILE, names_splits, read_folder, read_split

YAML_SUFFIXES = frozenset({".yaml", ".yml"})


def read_data(source: Path, *, only: Sequence[str] = (), split: str | None = None) -> LabelledData:
    """The labelled images of a folder, a `data.yaml` or a COCO file.

    They are in the order of their names, those of a COCO file in that of their ids: pycocotools
    looks at them so, and of equal confidences the first counts first.

    `only`: patterns of file names, such as `MOS15*`, of which one must fit. `split`: of the parts
    that a `data.yaml` names, or "all" of them; by default `val`, so that nothing is measured on
    what was trained on. Raises EvaluationDataError.
    """
    if not source.exists():
        raise EvaluationDataError(f"There is no folder or file {source}.")
    data = _read(source, split)
    images = tuple(one for one in data.images if not only or _fits(one.path, only))
    if not images:
        raise EvaluationDataError(f"No image in {source} fits {', '.join(only)}.")
    return replace(data, images=images)


def _read(source: Path, split: str | None) -> LabelledData:
    if source.is_file() and source.suffix.lower() in YAML_SUFFIXES:
        return read_split(source, split or "val")
    beside = source / DATA_FILE
    if split is not None:
        if not beside.is_file():
            raise EvaluationDataError(
                f"There is no split {split} of {source}: no {DATA_FILE} in it names any."
            )
        return read_split(beside, split)
    if beside.is_file() and names_splits(beside):  # whatever JSON lies beside it
        return read_split(beside, "val")
    annotations = find_coco(source)
    if annotations is not None:
        return read_coco(annotations)
    return read_folder(source)


def _fits(path: Path, patterns: Sequence[str]) -> bool:
    return any(fnmatch(path.name, pattern) or fnmatch(path.stem, pattern) for pattern in patterns)
