"""Reads what a file of weights says about itself, without running anything that it brings."""

from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path

from inference.pipeline.errors import WeightsError
from inference.pipeline.onnx_file import read_onnx
from inference.pipeline.torch_network import load_model
from inference.pipeline.weights_file import WeightsFacts

MAX_CLASSES = 1000
MAX_NAME_LETTERS = 100
_ZIP_MAGIC = b"PK\x03\x04"


def read_weights(path: Path, *, config_dir: Path | None = None) -> WeightsFacts:
    """What is in a checkpoint of Ultralytics (.pt) or an ONNX export; the content decides which.

    A pickle that names anything but a plain detection model is refused before any of it is
    called. Raises WeightsError (`weights_unreadable`, `weights_unsafe`, `not_a_detector`).
    """
    with path.open("rb") as file:
        is_zip = file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC
    if is_zip:
        names, image_size, parameters = _read_checkpoint(path, config_dir)
    else:
        names, image_size, parameters = read_onnx(path)
    return WeightsFacts("pt" if is_zip else "onnx", _ordered(names), image_size, parameters)


def _read_checkpoint(path: Path, config_dir: Path | None) -> tuple[dict[int, str], None, int]:
    _check_archive(path)
    model = load_model(path, config_dir)
    names = {int(class_id): str(name) for class_id, name in dict(model.names).items()}
    if model.model[-1].nc != len(names):
        raise WeightsError("not_a_detector", "The model names not as many classes as it has.")
    return names, None, sum(one.numel() for one in model.parameters())


def _check_archive(path: Path) -> None:
    """Checkpoints are stored as they are: one that is packed could grow without bounds.

    Torch does not compare the sums of its members, and would run weights that were damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            packed = any(one.compress_type != zipfile.ZIP_STORED for one in archive.infolist())
            damaged = None if packed else archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, ValueError) as error:
        raise WeightsError("weights_unreadable", "The file is no sound checkpoint.") from error
    if packed:
        raise WeightsError("weights_unsafe", "The checkpoint is compressed.")
    if damaged is not None:
        raise WeightsError("weights_unreadable", "The checkpoint is damaged.")


def _ordered(names: dict[int, str]) -> tuple[str, ...]:
    if not 1 <= len(names) <= MAX_CLASSES or sorted(names) != list(range(len(names))):
        raise WeightsError(
            "not_a_detector", f"The model must name 1 to {MAX_CLASSES} classes, from 0 on."
        )
    ordered = tuple(names[class_id] for class_id in range(len(names)))
    for name in ordered:
        if not name.strip() or len(name) > MAX_NAME_LETTERS or not name.isprintable():
            raise WeightsError("not_a_detector", f"{name[:MAX_NAME_LETTERS]!r} is no class name.")
    # Whoever counts, filters or measures by name could not tell them apart.
    name, count = Counter(one.casefold() for one in ordered).most_common(1)[0]
    if count > 1:
        raise WeightsError("not_a_detector", f"The model calls {count} of its classes {name!r}.")
    return ordered
