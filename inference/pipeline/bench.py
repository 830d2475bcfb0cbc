"""Measures the pipeline against its parts, on a video that it draws itself or on given ones.

    python -m inference.pipeline.bench [VIDEO ...]

Everything is measured in one run, on one machine and on the same frames: the way of a plain
script (one frame at a time through Ultralytics' own steps), ours from file to results, ours with
the annotated video, and the network alone, which nothing around it can beat.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from datasets.media.video import count_frames, iter_frames
from inference.pipeline.encode import VideoWriter
from inference.pipeline.letterbox import Letterbox
from inference.pipeline.merge import merge
from inference.pipeline.network import YoloDetector, load_detector
from inference.pipeline.run import process_video
from inference.scenes import draw_video_scene

_WEIGHTS = Path(__file__).parent.parent / "weights" / "YOLO8s_FSR.pt"
_DRAWN_SIZE_WH = (1280, 720)
_CANDIDATES = 30_000
_ROUNDS = 2


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the head of this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("videos", nargs="*", type=Path)
    parser.add_argument("--weights", type=Path, default=_WEIGHTS)
    parser.add_argument("--frames", type=int, default=24, help="at most, of each video")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch")
    options = parser.parse_args(arguments)
    detector = load_detector(options.weights, threads=options.threads)
    _say(
        f"{options.weights.stem} at {detector.image_size} px, {detector.precision} on "
        f"{detector.device}, {options.threads} threads, {os.cpu_count()} CPUs"
    )
    with tempfile.TemporaryDirectory() as folder:
        videos = options.videos or [_drawn_video(Path(folder), options.frames)]
        for video in videos:
            _measure_video(video, options.weights, detector, options.frames, Path(folder))
    _measure_merging()


def _drawn_video(folder: Path, frame_count: int) -> Path:
    path = folder / "drawn.mp4"
    scenes = draw_video_scene(1, frame_count, _DRAWN_SIZE_WH, 12)
    with VideoWriter(path, _DRAWN_SIZE_WH) as writer:
        for index, scene in enumerate(_with_bar(scenes, frame_count, "drawing")):
            writer.write(scene.image, index / 25)
    return path


def _measure_video(
    video: Path, weights: Path, detector: YoloDetector, max_frames: int, folder: Path
) -> None:
    facts = count_frames(video)
    frame_count = min(facts.frame_count, max_frames)
    width, height = facts.size_wh
    _say(f"{video.name}: {frame_count} frames of {width} x {height}")
    detector.warm_up()
    plain = _plain_script(weights, detector)
    next(plain(iter_frames(video, max_frames=1)))

    def run(annotated: Path | None) -> None:
        process_video(
            video,
            detector,
            annotated=annotated,
            on_frames=lambda _frames: None,
            max_frames=frame_count,
        )

    ways: dict[str, Callable[[], object]] = {
        "one by one": lambda: list(plain(iter_frames(video, max_frames=frame_count))),
        "pipeline": lambda: run(None),
        "annotated": lambda: run(folder / "annotated.mp4"),
    }
    # In turns, and the best of each counts: a machine that is busy for a while slows all alike.
    seconds = dict.fromkeys(ways, float("inf"))
    for way in _with_bar(iter([*ways] * _ROUNDS), _ROUNDS * len(ways), "measuring"):
        start = time.perf_counter()
        ways[way]()
        seconds[way] = min(seconds[way], time.perf_counter() - start)
    base, ours, drawn = (frame_count / seconds[way] for way in ways)
    batch, bare = _bare_network(detector, facts.size_wh)
    _say(f"  one frame at a time, Ultralytics' steps  {base:8.2f} frames/s")
    _say(f"  ours, file to results                    {ours:8.2f} frames/s  {ours / base:5.2f} x")
    _say(f"  ours, with the annotated video           {drawn:8.2f} frames/s  {drawn / base:5.2f} x")
    _say(f"  the bare network, batches of {batch:<3}         {bare:8.2f} frames/s")
    _say(f"  ours reaches {ours / bare:.0%} of the bare network, annotated {drawn / bare:.0%}")


def _plain_script(
    weights: Path, detector: YoloDetector
) -> Callable[[Iterator], Iterator[np.ndarray]]:
    """What a plain script does with each frame, on the same device, in full precision."""
    # Only here and in network.py: the comparison is with Ultralytics, so it is what runs.
    from ultralytics.data.augment import LetterBox
    from ultralytics.nn.tasks import torch_safe_load
    from ultralytics.utils.nms import non_max_suppression
    from ultralytics.utils.ops import scale_boxes

    checkpoint = torch_safe_load(str(weights), safe_only=True)[0]
    model = (checkpoint.get("ema") or checkpoint["model"]).float().fuse(verbose=False).eval()
    model = model.to(detector.device)
    letterbox = LetterBox(detector.image_size, auto=True, stride=32)

    def work(frames: Iterator) -> Iterator[np.ndarray]:
        for frame in frames:
            fitted = letterbox(image=frame.image)
            inputs = np.ascontiguousarray(fitted.transpose(2, 0, 1)[None])
            with torch.inference_mode():
                raw = model(torch.from_numpy(inputs).to(detector.device).float() / 255)[0]
                found = non_max_suppression(raw, conf_thres=0.25, iou_thres=0.7)[0]
                scale_boxes(fitted.shape[:2], found[:, :4], frame.image.shape[:2])
            yield found.cpu().numpy()

    return work


def _bare_network(detector: YoloDetector, size_wh: tuple[int, int]) -> tuple[int, float]:
    """The best batch and its images per second, without reading, fitting or merging."""
    width, height = Letterbox.fit(size_wh, detector.image_size).input_wh
    best = (1, 0.0)
    for batch in (1, 2, 4, 8) if detector.device == "cpu" else (8, 16, 32, 64):
        inputs = np.full((batch, height, width, 3), 114, np.uint8)
        rounds = max(2, 12 // batch) if detector.device == "cpu" else 20
        detector.run_network(inputs)
        _wait_for(detector)
        seconds = float("inf")
        for _ in range(rounds):
            start = time.perf_counter()
            detector.run_network(inputs)
            _wait_for(detector)
            seconds = min(seconds, time.perf_counter() - start)
        rate = batch / seconds
        best = max(best, (batch, rate), key=lambda pair: pair[1])
    return best


def _wait_for(detector: YoloDetector) -> None:
    if detector.device.startswith("cuda"):
        torch.cuda.synchronize()


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
        kept = len(merge(class_ids, confidences, boxes))
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
