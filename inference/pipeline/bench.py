"""Measures the pipeline against its parts, on media that it draws itself and on given files.

    python -m inference.pipeline.bench [FILE ...] [--precisions fp32 int8] [--only media]

Everything is measured in one run, in turns and on the same frames, because only ratios hold on a
machine that does other things: (a) the way a user of Ultralytics does it, with and without the
saved video, (b) ours from the file to results, without and with the annotated video, (c) the
bare network at its best batch in every lane, which nothing around it can beat.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from datasets.media.images import read_image
from datasets.media.sniff import sniff
from datasets.media.video import count_frames
from inference.pipeline.bench_baseline import Baseline, sahi_way, ultralytics_way
from inference.pipeline.detector import YoloDetector
from inference.pipeline.encode import VideoWriter, write_image
from inference.pipeline.errors import WeightsError
from inference.pipeline.merge import merge
from inference.pipeline.network import fast_precisions, load_detector
from inference.pipeline.options import DetectionOptions, Tiling
from inference.pipeline.run import ImageTask, process_images, process_video
from inference.pipeline.tiles import plan
from inference.pipeline.types import Image
from inference.scenes import draw_scene, draw_video_scene

_WEIGHTS = Path(__file__).parent.parent / "weights" / "YOLO8s_FSR.pt"
_DRAWN_VIDEO_WH, _DRAWN_PHOTOGRAPH_WH = (1280, 720), (3264, 2448)
_PARTS = ("media", "memory", "merge")
_PHOTOGRAPH_TILING = Tiling(640, 0.2)
_CANDIDATES = 30_000
_MEMORY_FRAMES_PER_SECOND, _MEMORY_IMAGE_SIZE = 5, 320
_MEMORY_VIDEO_SECONDS = (60, 600)

Ways = dict[str, Callable[[], object]]


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the head of this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, help="videos and images")
    parser.add_argument("--weights", type=Path, default=_WEIGHTS)
    parser.add_argument("--image-size", type=int, default=640)
    parser.add_argument(
        "--precisions", nargs="+", default=fast_precisions(), help="all that gain speed here"
    )
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--only", nargs="+", choices=_PARTS, default=_PARTS)
    parser.add_argument("--frames", type=int, default=46, help="at most, of each video")
    parser.add_argument("--rounds", type=int, default=3, help="the best of them counts")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.memory_of:
        _say(str(_peak_mebibytes(options)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "media" in options.only:
            files = options.files or _drawn_media(folder, options.frames)
            for precision in options.precisions:
                _measure_files(files, precision, options, folder)
        if "memory" in options.only:
            _measure_memory(folder, options)
    if "merge" in options.only:
        _measure_merging()


def _drawn_media(folder: Path, frame_count: int) -> list[Path]:
    video, photograph = folder / "drawn.mp4", folder / "drawn.jpg"
    scenes = draw_video_scene(1, frame_count, _DRAWN_VIDEO_WH, 12)
    with VideoWriter(video, _DRAWN_VIDEO_WH) as writer:
        for index, scene in enumerate(_with_bar(scenes, frame_count, "drawing")):
            writer.write(scene.image, index / 25)
    write_image(photograph, draw_scene(2, _DRAWN_PHOTOGRAPH_WH, 40).image)
    return [video, photograph]


def _measure_files(
    files: Sequence[Path], precision: str, options: argparse.Namespace, folder: Path
) -> None:
    try:
        detector = load_detector(
            options.weights,
            options=DetectionOptions.parse(
                {"precision": precision, "image_size": options.image_size}
            ),
            runtime=options.runtime,
            threads=options.threads,
        )
    except WeightsError as error:
        _say(f"{precision}: {error}")
        return
    network = detector.network
    for file in files:
        is_video = sniff(file).kind == "video"
        size_wh = count_frames(file).size_wh if is_video else _size_wh(file)
        detector.warm_up(size_wh if is_video else (options.image_size, options.image_size))
        _say(
            f"{file.name}, {size_wh[0]} x {size_wh[1]}; {options.weights.stem} at "
            f"{detector.image_size} px, {network.precision} by {network.runtime} on "
            f"{network.device}, {network.lanes} lanes, batches of {network.batch_size}"
        )
        measure = _measure_video if is_video else _measure_photograph
        measure(file, detector, options, folder)


def _size_wh(image: Path) -> tuple[int, int]:
    height, width = read_image(image).shape[:2]
    return width, height


def _measure_video(
    video: Path, detector: YoloDetector, options: argparse.Namespace, folder: Path
) -> None:
    frame_count = min(count_frames(video).frame_count, options.frames)
    plain = _baseline(options, detector)

    def ours(annotated: Path | None) -> None:
        process_video(
            video,
            detector,
            annotated=annotated,
            on_frames=lambda _frames: None,
            max_frames=frame_count,
        )

    (part,) = plan(count_frames(video).size_wh, detector.options)
    costs = _in_turns(
        {
            plain.name: lambda: plain.watch(video, frame_count, None),
            f"{plain.name}, saved": lambda: plain.watch(video, frame_count, folder),
            "ours, to results": lambda: ours(None),
            "ours, annotated": lambda: ours(folder / "ours.mp4"),
            "bare network": lambda: _run_bare(detector, part.letterbox.input_wh, frame_count),
        },
        options.rounds,
    )
    _print_rates("frames/s", frame_count, costs, base=f"{plain.name}, saved")


def _measure_photograph(
    photograph: Path, detector: YoloDetector, options: argparse.Namespace, folder: Path
) -> None:
    tiled = YoloDetector(
        detector.network,
        DetectionOptions(image_size=detector.image_size, tiling=_PHOTOGRAPH_TILING),
    )
    image = read_image(photograph)
    parts = plan((image.shape[1], image.shape[0]), tiled.options)
    tiles = parts[1:] or parts
    plain = _baseline(options, detector)

    def cut() -> list[Image]:
        return [image[top:bottom, left:right] for (left, top), (right, bottom), *_ in parts]

    def ours(annotated: Path | None) -> None:
        for _ in process_images([ImageTask(photograph, annotated)], tiled):
            pass

    ways: Ways = {
        plain.name: lambda: plain.look_at(cut()),
        "ours, to results": lambda: ours(None),
        "ours, annotated": lambda: ours(folder / "ours.jpg"),
        "bare network": lambda: _run_bare(detector, tiles[0].letterbox.input_wh, len(parts)),
    }
    sliced = sahi_way(
        options.weights,
        image_size=detector.image_size,
        device=detector.device,
        threads=options.threads,
    )
    if sliced is not None:
        ways[sliced.name] = lambda: sliced.look_at(image, _PHOTOGRAPH_TILING, tiled.options.iou)
    costs = _in_turns(ways, options.rounds)
    _print_rates("tiles/s", len(parts), costs, base=plain.name)


def _baseline(options: argparse.Namespace, detector: YoloDetector) -> Baseline:
    return ultralytics_way(
        options.weights,
        image_size=detector.image_size,
        device=detector.device,
        threads=options.threads,
    )


def _run_bare(detector: YoloDetector, input_wh: tuple[int, int], count: int) -> None:
    """The network alone on so many inputs, in all lanes and at its batch size."""
    network = detector.network
    batches = -(-count // network.batch_size)

    def run(_: int) -> None:
        network.run_grey(network.batch_size, input_wh)

    with ThreadPoolExecutor(network.lanes) as pool:
        list(pool.map(run, range(batches)))


class Cost(NamedTuple):
    """What a way took: seconds on the clock, and seconds of all processors together."""

    seconds: float
    processor_seconds: float


def _in_turns(ways: Ways, rounds: int) -> dict[str, Cost]:
    """The best of each way; a machine that is busy for a while slows all alike."""
    costs = dict.fromkeys(ways, Cost(float("inf"), float("inf")))
    turns = [*ways] * rounds
    for way in _with_bar(iter(turns), len(turns), "measuring"):
        start, processor_start = time.perf_counter(), time.process_time()
        ways[way]()
        cost = Cost(time.perf_counter() - start, time.process_time() - processor_start)
        costs[way] = Cost(*map(min, costs[way], cost))
    return costs


def _print_rates(unit: str, count: int, costs: dict[str, Cost], *, base: str) -> None:
    rates = {way: count / cost.seconds for way, cost in costs.items()}
    bare = rates["bare network"]
    for way, rate in rates.items():
        processor_milliseconds = 1000 * costs[way].processor_seconds / count
        line = f"  {way:<29}{rate:8.2f} {unit} {processor_milliseconds:7.0f} ms of processors"
        if way.startswith("ours"):
            line += f"   b/a {rate / rates[base]:5.2f}   b/c {rate / bare:5.2f}"
        _say(line)


def _measure_memory(folder: Path, options: argparse.Namespace) -> None:
    """The peak of a process that looks at a minute, and of one that looks at ten."""
    peaks = []
    for seconds in _MEMORY_VIDEO_SECONDS:
        video = folder / f"{seconds}.mp4"
        _write_long_video(video, seconds * _MEMORY_FRAMES_PER_SECOND)
        command = [sys.executable, "-m", "inference.pipeline.bench", "--memory-of", str(video)]
        command += ["--weights", str(options.weights), "--threads", str(options.threads)]
        finished = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(float(finished.stdout))
        _say(f"peak memory of a video of {seconds} s: {peaks[-1]:.0f} MiB")
    _say(f"  ratio {peaks[-1] / peaks[0]:.3f}")


def _write_long_video(path: Path, frame_count: int) -> None:
    loop = [scene.image for scene in draw_video_scene(3, 25, (640, 360), 8)]
    with VideoWriter(path, (640, 360)) as writer:
        for index in _with_bar(iter(range(frame_count)), frame_count, "drawing"):
            writer.write(loop[index % len(loop)], index / _MEMORY_FRAMES_PER_SECOND)


def _peak_mebibytes(options: argparse.Namespace) -> float:
    """Of this process, after a video was looked at and drawn."""
    detector = load_detector(
        options.weights,
        options=DetectionOptions(image_size=_MEMORY_IMAGE_SIZE),
        threads=options.threads,
    )
    with tempfile.TemporaryDirectory() as folder:
        process_video(
            options.memory_of,
            detector,
            annotated=Path(folder) / "annotated.mp4",
            on_frames=lambda _frames: None,
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _measure_merging() -> None:
    rng = np.random.default_rng(0)
    for vehicles in (300, 3_000):
        # Candidates crowd around vehicles, as a network's do.
        centres = rng.uniform(0, 1000, (vehicles, 2))[rng.integers(vehicles, size=_CANDIDATES)]
        centres += rng.normal(0, 1.5, centres.shape)
        half = rng.uniform(8, 12, (_CANDIDATES, 2))
        boxes = np.concatenate((centres - half, centres + half), axis=1).astype(np.float32)
        confidences = rng.random(_CANDIDATES).astype(np.float32)
        class_ids = rng.integers(0, 4, _CANDIDATES)
        start = time.perf_counter()
        kept = len(merge(class_ids, confidences, boxes)[0])
        milliseconds = 1000 * (time.perf_counter() - start)
        _say(
            f"merging {_CANDIDATES} boxes around {vehicles} vehicles into {kept}: "
            f"{milliseconds:.0f} ms"
        )


def _with_bar(items: Iterator, count: int, title: str) -> Iterator:
    return iter(tqdm(items, total=count, desc=title, disable=not sys.stderr.isatty(), leave=False))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
