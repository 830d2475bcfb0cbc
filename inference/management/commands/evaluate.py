"""`manage.py evaluate MODEL DATA`: how well a model does on labelled images, in COCO's metrics."""

import json
import sys
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import OperationalError
from tqdm import tqdm

from inference.evaluation.data import LabelledData, for_model
from inference.evaluation.errors import EvaluationDataError
from inference.evaluation.evaluate import Evaluation, evaluate
from inference.evaluation.read import read_data
from inference.evaluation.report import as_json, draw_curves, left_out, table
from inference.evaluation.yolo import ALL_SPLITS, SPLITS
from inference.models import ModelVersion
from inference.pipeline.detector import YoloDetector
from inference.pipeline.errors import PipelineError
from inference.pipeline.options import PRECISIONS, DetectionOptions, OptionsError, Tiling
from inference.planning import default_options
from inference.weights_store import local_weights, package_models

EVALUATION_FLOOR = 0.001  # average precision is an area under the whole curve


class Command(BaseCommand):
    """Measures on a folder in the format of YOLO or COCO, which needs no service to run."""

    help = (
        "Measure a model on labelled images (a folder in the format of YOLO or COCO), with and "
        "without tiling: average precision and recall by pycocotools."
    )
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The model, the data, and how to look at them."""
        parser.add_argument("model", help="a registered version, or a path to weights")
        parser.add_argument(
            "data", type=Path, help="a folder of images with labels, a data.yaml, or COCO JSON"
        )
        parser.add_argument(
            "--split",
            choices=(*SPLITS, ALL_SPLITS),
            help="of those that data.yaml names; val by default",
        )
        parser.add_argument(
            "--tiling",
            nargs="+",
            default=["off", "auto"],
            help="off, auto, or a tile's side in pixels; each is measured, whatever jobs do",
        )
        parser.add_argument("--ignore", nargs="+", default=[], help="classes to leave out")
        parser.add_argument("--only", nargs="+", default=[], help='file names, such as "MOS15*"')
        parser.add_argument("--image-size", type=int, help="by default that of the version")
        parser.add_argument("--iou", type=float, help="of merging, likewise")
        parser.add_argument("--precision", choices=PRECISIONS, help="of the arithmetic, likewise")
        parser.add_argument("--confidence-floor", type=float, default=EVALUATION_FLOOR)
        parser.add_argument("--device", help="as torch names it; by default the best there is")
        parser.add_argument("--json", type=Path, help="where the figures go")
        parser.add_argument("--picture", type=Path, help="where the precision-recall curves go")

    def handle(self, *args: Any, **options: Any) -> None:
        """Read everything before the first image is looked at, so that bad data fail at once."""
        try:
            weights, defaults = _weights(options["model"])
            named = ("confidence_floor", "iou", "image_size", "precision")
            given = {name: options[name] for name in named if options[name] is not None}
            base = replace(defaults, **given)
            tilings = {word: replace(base, tiling=_tiling(word)) for word in options["tiling"]}
            raw = read_data(options["data"], only=options["only"], split=options["split"])
            network = _load(weights, base, options["device"])
            data = for_model(raw, network.class_names, ignored=options["ignore"])
            evaluations = [
                evaluate(
                    YoloDetector(network, chosen),
                    data,
                    name=name,
                    progress=_progress(f"tiling {name}"),
                )
                for name, chosen in tilings.items()
            ]
        except (EvaluationDataError, OptionsError, PipelineError) as error:
            raise CommandError(str(error)) from error
        results = [{**as_json(one), "options": tilings[one.name].as_json()} for one in evaluations]
        self._report(data, evaluations, options)
        about = {**_about(network), "weights": weights.name}
        self._write(about, data, results, evaluations, options)

    def _report(
        self, data: LabelledData, evaluations: list[Evaluation], options: dict[str, Any]
    ) -> None:
        self.stdout.write(_title(data, evaluations, options))
        for line in left_out(data):
            self.stdout.write(line)
        self.stdout.write(table(evaluations))

    def _write(
        self,
        about: dict[str, Any],
        data: LabelledData,
        results: list[dict[str, Any]],
        evaluations: list[Evaluation],
        options: dict[str, Any],
    ) -> None:
        document = {
            "model": {"name": options["model"], **about},
            "data": {
                "name": options["data"].name,
                "split": data.split,
                "images": len(data.images),
                "objects": data.object_count,
                "sizes": evaluations[0].scores.sizes,
                "left_out": data.left_out,
                "boxes_without_area": data.empty_box_count,
                "boxes_written_twice": data.repeated_box_count,
            },
            "results": results,
        }
        try:
            if options["json"]:
                options["json"].write_text(json.dumps(document, indent=2) + "\n")
            if options["picture"]:
                title = _title(data, evaluations, options)
                draw_curves(evaluations, options["picture"], title=title)
        except OSError as error:
            raise CommandError(f"The report cannot be written: {error}") from error


def _title(data: LabelledData, evaluations: list[Evaluation], options: dict[str, Any]) -> str:
    split = f", {data.split}" if data.split else ""
    told = ", ".join(f"{count} {size}" for size, count in evaluations[0].scores.sizes.items())
    return (
        f"{options['model']} on {options['data'].name}{split}: {len(data.images)} images, "
        f"{data.object_count} objects ({told})"
    )


def _weights(model: str) -> tuple[Path, DetectionOptions]:
    """The file of a version, whatever its state, and how jobs use it; or the path itself.

    The package's own versions need no database: without one they are used as they come.
    """
    if Path(model).is_file():
        return Path(model), DetectionOptions()
    package = next((one for one in package_models() if one.version == model), None)
    found = None
    try:
        versions = ModelVersion.objects.exclude(weights_sha256="").filter(version=model)
        found = versions.order_by("pk").first()
    except OperationalError as error:
        if package is None:
            raise CommandError(
                f"{model} is neither a file nor a model of the package, and the database that may "
                "know it does not answer."
            ) from error
    if found is not None:
        return local_weights(found.weights_sha256), default_options(found)
    if package is not None:
        unsaved = ModelVersion(default_options=package.default_options)
        return package.path, default_options(unsaved)
    raise CommandError(f"{model} is neither a file nor a model version.")


def _tiling(word: str) -> Any:
    return Tiling(int(word)) if word.isdecimal() else word


def _load(weights: Path, options: DetectionOptions, device: str | None) -> Any:
    # Torch is heavy, and not needed to say that the data cannot be read.
    from inference.pipeline.network import load_network

    threads = settings.TORCH_THREADS or None
    return load_network(weights, precision=options.precision, device=device, threads=threads)


def _about(network: Any) -> dict[str, Any]:
    return {
        "sha256": network.sha256,
        "class_names": list(network.class_names),
        "device": network.device,
        "runtime": network.runtime,
        "precision": network.precision,
    }


def _progress(name: str) -> Any:
    def watched(images: Any) -> Any:
        return tqdm(images, desc=name, unit="image", disable=not sys.stderr.isatty(), leave=False)

    return watched
