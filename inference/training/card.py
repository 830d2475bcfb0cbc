"""Writes the part of a model card that is measured: scores, and pictures of known failures."""

from __future__ import annotations

import datetime
import json
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inference.evaluation.data import LabelledData, for_model
from inference.evaluation.evaluate import Evaluation, evaluate
from inference.evaluation.read import read_data
from inference.evaluation.report import ROWS, draw_curves, left_out, share
from inference.pipeline.detector import YoloDetector
from inference.pipeline.network import Network, load_network
from inference.pipeline.options import (
    DEFAULT_IMAGE_SIZE,
    DISPLAY_CONFIDENCE,
    DetectionOptions,
    Precision,
)
from inference.training.failures import (
    FIRST_CLUTTER_SEED,
    FIRST_STREET_SEED,
    Outcome,
    as_webp,
    draw_outcome,
    drawn_pictures,
    look_at,
    worst,
)

PICTURES_LIMIT_BYTES = 300_000  # of all pictures of a card together
_EVALUATION_FLOOR = 0.001  # average precision is an area under the whole curve
_TILINGS = ("off", "auto")

Rows = list[list[str]]


class CardError(Exception):
    """The card cannot be written; the sentence says why."""


@dataclass(frozen=True)
class CardPlan:
    """What a card is written about, and where.

    `only`, `ignore` and `split` choose from the data as in `evaluation.read` and `.data`.
    `recipe`: the `recipe.json` of a training. `repeat`: the command that makes the card again.
    """

    weights: Path
    data: Path
    out: Path
    only: Sequence[str] = ()
    ignore: Sequence[str] = ()
    split: str | None = None
    image_size: int = DEFAULT_IMAGE_SIZE
    precision: Precision = "auto"
    device: str | None = None
    threads: int | None = None
    recipe: Path | None = None
    street_count: int = 12
    clutter_count: int = 10
    failure_count: int = 3
    repeat: Sequence[str] = field(default_factory=list)


def write_card(plan: CardPlan) -> None:
    """Measures and writes the card, as Markdown, and its pictures beside it.

    The pictures, WebP, are named after the card and take PICTURES_LIMIT_BYTES together at most.
    Raises EvaluationDataError, OptionsError, PipelineError, CardError and OSError.
    """
    options = DetectionOptions(image_size=plan.image_size, precision=plan.precision)
    recipe = _recipe_rows(plan.recipe) if plan.recipe else []
    raw = read_data(plan.data, only=plan.only, split=plan.split)
    network = load_network(
        plan.weights, precision=plan.precision, device=plan.device, threads=plan.threads
    )
    data = for_model(raw, network.class_names, ignored=plan.ignore)
    evaluations = [
        evaluate(YoloDetector(network, _exact(options, tiling)), data, name=tiling)
        for tiling in _TILINGS
    ]
    drawn = drawn_pictures(plan.street_count, plan.clutter_count)
    outcomes = look_at(YoloDetector(network, options), drawn, DISPLAY_CONFIDENCE)
    shown = worst(outcomes, plan.failure_count)
    curves, *pictures = _write_pictures(plan, evaluations, shown)
    lines = [
        *_scores(plan, network, data, evaluations, curves),
        *(["## How it was trained", "", *_table(["figure", ""], recipe), ""] if recipe else []),
        *_failures(outcomes, shown, pictures),
    ]
    plan.out.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _exact(options: DetectionOptions, tiling: Any) -> DetectionOptions:
    return DetectionOptions.parse(
        {"tiling": tiling, "confidence_floor": _EVALUATION_FLOOR}, defaults=options
    )


def _recipe_rows(path: Path) -> Rows:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CardError(f"{path} cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise CardError(f"{path} is no recipe.")
    return list(_flat(document))


def _flat(values: dict[str, Any], within: str = "") -> Iterator[list[str]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{within}{name}.")
        else:
            yield [f"{within}{name}", value if isinstance(value, str) else json.dumps(value)]


def _write_pictures(
    plan: CardPlan, evaluations: Sequence[Evaluation], shown: Sequence[Outcome]
) -> list[Path]:
    """The curves, then a picture for each failure."""
    curves = plan.out.with_name(f"{plan.out.stem}-curves.webp")
    draw_curves(evaluations, curves, title=plan.weights.stem)
    paths, left_bytes = [curves], PICTURES_LIMIT_BYTES - curves.stat().st_size
    for number, outcome in enumerate(shown, start=1):
        path = plan.out.with_name(f"{plan.out.stem}-failure-{number}.webp")
        path.write_bytes(as_webp(draw_outcome(outcome), left_bytes // len(shown)))
        paths.append(path)
    return paths


# -- the text --------------------------------------------------------------------------------------


def _scores(
    plan: CardPlan,
    network: Network,
    data: LabelledData,
    evaluations: Sequence[Evaluation],
    curves: Path,
) -> list[str]:
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    sizes = ", ".join(f"{n} {size}" for size, n in evaluations[0].scores.sizes.items())
    split = f", {data.split}" if data.split else ""
    facts = [
        ["weights", f"`{plan.weights.name}`, {plan.weights.stat().st_size:,} bytes"],
        ["SHA-256", f"`{network.sha256}`"],
        ["classes", ", ".join(f"{i} {name}" for i, name in enumerate(network.class_names))],
        ["measured", f"{today}, {network.precision} by {network.runtime} on {network.device}"],
        ["input", f"longer side {plan.image_size} pixels"],
        ["data", f"{plan.data.absolute().name}{split}: {len(data.images)} images"],
        ["objects", f"{data.object_count} ({sizes})"],
    ]
    names = [f"tiling {one.name}" for one in evaluations]
    return [
        "## How good it is",
        "",
        *_table(["", ""], facts),
        "",
        *left_out(data),
        "Without regard to classes; in brackets the mean over the classes:",
        "",
        *_table(["", *names], _score_rows(evaluations)),
        "",
        "By class:",
        "",
        *_table(
            ["class", "objects", *(f"{n}: AP50, AP50-95" for n in names)],
            _class_rows(data, evaluations),
        ),
        "",
        f"![Precision over recall]({curves.name})",
        "",
        "To measure it again:",
        "",
        f"    {shlex.join(plan.repeat)}",
        "",
    ]


def _score_rows(evaluations: Sequence[Evaluation]) -> Rows:
    rows = []
    for label, member in ROWS:
        row = [label]
        for one in evaluations:
            agnostic = share(getattr(one.scores.class_agnostic, member))
            mean = share(getattr(one.scores.mean_over_classes, member))
            row.append(f"{agnostic} ({mean})")
        rows.append(row)
    return rows


def _class_rows(data: LabelledData, evaluations: Sequence[Evaluation]) -> Rows:
    names = data.class_names or {}
    counts = Counter(names[int(one)] for image in data.images for one in image.class_ids)
    rows = []
    for name in evaluations[0].scores.by_class:
        figures = [one.scores.by_class[name] for one in evaluations]
        aps = [f"{share(one.ap_50)}, {share(one.ap)}" for one in figures]
        rows.append([name, str(counts[name]), *aps])
    return rows


def _failures(
    outcomes: Sequence[Outcome], shown: Sequence[Outcome], pictures: Sequence[Path]
) -> list[str]:
    streets = sum(one.is_street for one in outcomes)
    found, missed, false = (
        sum(len(getattr(one, name)) for one in outcomes)
        for name in ("found_xyxy", "missed_xyxy", "false_xyxy")
    )
    lines = [
        "## Known failures",
        "",
        f"In {streets} drawn streets (seeds from {FIRST_STREET_SEED}) and "
        f"{len(outcomes) - streets} drawn pictures of clutter without a vehicle (from "
        f"{FIRST_CLUTTER_SEED}), at a confidence of {DISPLAY_CONFIDENCE} and without tiles: "
        f"{found} of {found + missed} vehicles found, {false} false boxes.",
        "",
    ]
    if shown:
        lines += ["The worst of them; green was found, red missed, yellow is false:", ""]
    for outcome, path in zip(shown, pictures, strict=True):
        told = f"{len(outcome.missed_xyxy)} missed, {len(outcome.false_xyxy)} false"
        lines += [f"![{outcome.picture.name}: {told}]({path.name})", ""]
    return lines


def _table(head: Sequence[str], rows: Rows) -> list[str]:
    line = [_row(head), "|" + "---|" * len(head)]
    return line + [_row(row) for row in rows]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
