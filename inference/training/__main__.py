"""The command line of training.

    python -m inference.training train WEIGHTS OUT --data FOLDER --steps 1000 --hold-out DJI_0013
    python -m inference.training export WEIGHTS OUT NAME.pt
    python -m inference.training blend FIRST.pt SECOND.pt NAME.pt --share 0.6
    python -m inference.training shift MODEL.pt BEFORE.pt AFTER.pt NAME.pt --share 1
    python -m inference.training grow SMALL.pt MEDIUM.pt
    python -m inference.training card WEIGHTS LABELLED --out CARD.md --only "DJI_0013*"

`train` goes on where an earlier call with the same OUT and recipe ended, or was ended. `FOLDER` is
the data folder: aerial_vehicles/ with images and labels, original_samples/ with road photographs.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import get_args

import cv2
import torch

from inference.evaluation.errors import EvaluationDataError
from inference.pipeline.errors import PipelineError
from inference.pipeline.network import fast_precisions
from inference.pipeline.options import (
    PRECISIONS,
    STRIDE_PIXELS,
    DetectionOptions,
    OptionsError,
)
from inference.training.batches import BatchPlan
from inference.training.clutter import draw_clutter
from inference.training.data import (
    Sources,
    draw_scenes,
    draw_traffic,
    load_bare_regions,
    load_photographs,
)
from inference.training.grow import grow
from inference.training.loop import (
    OtherRecipeError,
    Recipe,
    Trainer,
    TrainingPrecision,
    describe,
    keep_recipe,
)
from inference.training.network import blended, load_network, save_network, shifted

_SCENE_SEEDS = range(2_000_000, 2_000_048)  # tests, demo and measurements use small seeds
_TRAFFIC_SEEDS = range(2_100_000, 2_100_040)
_CLUTTER_SEEDS = range(120)
_DETAILED_SHARE = 0.25  # rebuilding all of a batch would take longer than the network itself
_VEHICLE_COUNTS = (10, 24, 0, 14)


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the head of this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    _add_train(commands.add_parser("train", help="train, or go on training"))
    export = commands.add_parser("export", help="write the averaged weights as the service reads")
    export.add_argument("start", type=Path, help="the checkpoint that training began with")
    export.add_argument("out", type=Path, help="the folder of the training")
    export.add_argument("weights", type=Path, help="the file to write")
    blending = commands.add_parser("blend", help="weights between those of two networks")
    blending.add_argument("first", type=Path)
    blending.add_argument("second", type=Path)
    blending.add_argument("weights", type=Path, help="the file to write")
    blending.add_argument("--share", type=float, default=0.6, help="of the second")
    shifting = commands.add_parser("shift", help="weights that move as those of another did")
    for name in ("model", "before", "after"):
        shifting.add_argument(name, type=Path)
    shifting.add_argument("weights", type=Path, help="the file to write")
    shifting.add_argument("--share", type=float, default=1.0, help="of the way")
    growing = commands.add_parser("grow", help="a YOLOv8m that computes what a YOLOv8s does")
    growing.add_argument("small", type=Path)
    growing.add_argument("medium", type=Path)
    growing.add_argument("--seed", type=int, default=1)
    _add_card(commands.add_parser("card", help="measure weights for their model card"))
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(given)
    options.given = given
    ways = {
        "train": _train,
        "export": _export,
        "blend": _blend,
        "shift": _shift,
        "grow": _grow,
        "card": _card,
    }
    ways[options.command](options)


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("start", type=Path, help="the checkpoint to begin with")
    parser.add_argument("out", type=Path, help="the folder of logs and checkpoints")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--stop", type=int, help="end after this step of them")
    parser.add_argument("--hold-out", nargs="*", default=[], help="sequences left out")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=Recipe.learning_rate)
    parser.add_argument("--warm-up", type=int, default=Recipe.warm_up_steps, metavar="STEPS")
    parser.add_argument("--save-every", type=int, default=50, metavar="STEPS")
    parser.add_argument("--averaging", type=float, default=Recipe.averaging)
    parser.add_argument("--detail-weight", type=float, default=0.0, help="of super-resolution")
    parser.add_argument(
        "--crops",
        nargs="+",
        type=_crops,
        default=list(BatchPlan.sizes),
        metavar="SIDExCOUNT",
        help="batches taken in turn, such as 320x16 576x5",
    )
    parser.add_argument(
        "--precision",
        choices=get_args(TrainingPrecision),
        help="of products; bf16 by default where the machine gains by it",
    )
    parser.add_argument("--device", help="as torch names it")
    parser.add_argument("--threads", type=int, default=os.cpu_count())


def _add_card(parser: argparse.ArgumentParser) -> None:
    defaults = DetectionOptions()
    parser.add_argument("weights", type=Path)
    parser.add_argument("labelled", type=Path, help="a folder, a data.yaml or COCO JSON")
    parser.add_argument("--out", type=Path, required=True, help="pictures are written beside it")
    parser.add_argument("--only", nargs="+", default=[], help='file names, such as "DJI_0013*"')
    parser.add_argument("--ignore", nargs="+", default=[], help="classes to leave out")
    parser.add_argument("--split", help="of those that data.yaml names, or all; val by default")
    parser.add_argument("--recipe", type=Path, help="the recipe.json of the training")
    parser.add_argument("--image-size", type=int, default=defaults.image_size)
    parser.add_argument("--precision", choices=PRECISIONS, default=defaults.precision)
    parser.add_argument("--streets", type=int, default=12, help="how many to draw")
    parser.add_argument("--clutter", type=int, default=10, help="how many pictures to draw")
    parser.add_argument("--device", help="as torch names it")
    parser.add_argument("--threads", type=int)


def _crops(text: str) -> tuple[int, int]:
    """'320x16' as a side in pixels and a count."""
    side, count = (int(part) for part in text.split("x"))
    if side % (2 * STRIDE_PIXELS) or count < 1:
        raise argparse.ArgumentTypeError(f"sides are multiples of {2 * STRIDE_PIXELS} pixels")
    return side, count


def _train(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(1)  # the network has the other cores
    recipe = Recipe(
        steps=options.steps,
        seed=options.seed,
        learning_rate=options.learning_rate,
        warm_up_steps=options.warm_up,
        averaging=options.averaging,
        detail_weight=options.detail_weight,
        precision=options.precision or _fastest_precision(),
        plan=BatchPlan(
            sizes=tuple(options.crops),
            detailed_share=_DETAILED_SHARE if options.detail_weight > 0 else 0.0,
        ),
    )
    options.out.mkdir(parents=True, exist_ok=True)
    described = {"hold_out": options.hold_out, "start": options.start.name, **describe(recipe)}
    try:
        keep_recipe(options.out, described)
    except OtherRecipeError as error:
        sys.exit(str(error))
    trainer = Trainer(load_network(options.start), recipe, options.out, options.device)
    if trainer.resume():
        sys.stderr.write(f"Going on after step {trainer.step}.\n")
    sources = Sources(
        photographs=load_photographs(options.data / "aerial_vehicles", held_out=options.hold_out),
        scenes=(
            *draw_scenes(_SCENE_SEEDS, _VEHICLE_COUNTS),
            *draw_traffic(_TRAFFIC_SEEDS, _VEHICLE_COUNTS),
        ),
        backgrounds=(
            *load_bare_regions(options.data / "original_samples"),
            *draw_clutter(_CLUTTER_SEEDS),
        ),
    )
    trainer.run(sources, stop=options.stop, save_every=options.save_every)


def _fastest_precision() -> TrainingPrecision:
    return "bf16" if "bf16" in fast_precisions() else "fp32"


def _export(options: argparse.Namespace) -> None:
    model = load_network(options.start)
    state = torch.load(options.out / "checkpoint.pt", map_location="cpu", weights_only=True)
    model.load_state_dict(state["averaged"])
    save_network(model, options.weights, note=(options.out / "recipe.json").read_text())


def _blend(options: argparse.Namespace) -> None:
    ends = load_network(options.first), load_network(options.second)
    note = f"{options.share} of the way from {options.first.name} to {options.second.name}"
    save_network(blended(*ends, options.share), options.weights, note=note)


def _shift(options: argparse.Namespace) -> None:
    model, before, after = (
        load_network(path) for path in (options.model, options.before, options.after)
    )
    note = (
        f"{options.model.name} and {options.share} of the way from {options.before.name} to "
        f"{options.after.name}"
    )
    save_network(shifted(model, before, after, options.share), options.weights, note=note)


def _grow(options: argparse.Namespace) -> None:
    medium = grow(load_network(options.small), seed=options.seed)
    save_network(medium, options.medium, note=f"grown from {options.small.name}")


def _card(options: argparse.Namespace) -> None:
    # pycocotools and matplotlib, which no training needs.
    from inference.training.card import CardError, CardPlan, write_card

    # Folders are those of one machine, so that a card names files only.
    words = [Path(one).name if os.sep in one else one for one in options.given]
    plan = CardPlan(
        weights=options.weights,
        data=options.labelled,
        out=options.out,
        only=options.only,
        ignore=options.ignore,
        split=options.split,
        image_size=options.image_size,
        precision=options.precision,
        device=options.device,
        threads=options.threads,
        recipe=options.recipe,
        street_count=options.streets,
        clutter_count=options.clutter,
        repeat=["python", "-m", "inference.training", *words],
    )
    try:
        write_card(plan)
    except (CardError, EvaluationDataError, OptionsError, PipelineError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
