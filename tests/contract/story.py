"""One customer's way through the service with files of every sort, and what was seen on it."""

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from inference.scenes import Scene, draw_scene, draw_video_scene
from tests import mediafiles
from tests.contract.client import Api, receive
from tests.service import Service

DATASET = "a street, seen from above"
VIDEO_FRAMES = 4
GIF_FRAMES = 3
RATE_FPS = 5
LONG = "x" * 240 + ".bmp"
EMOJI = "fo/lder/\N{GRINNING FACE} \N{SNOWMAN}.webp"
UTF8_NAMES = 0x800  # the flag of a zip entry that says how its name is encoded
ORIENTATION = 6  # the camera was held upright: shown after a quarter turn clockwise


@dataclass
class Story:
    """The customer, an outsider who watched too, and what happened."""

    customer: Api
    outsider: Api
    still: Scene
    moving: list[Scene]
    job_id: int = 0
    dataset_id: int = 0
    balances: dict[str, float] = field(default_factory=dict)
    token_cost: float = 0.0
    uploads: list[dict[str, Any]] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)
    outsider_messages: list[dict[str, Any]] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)

    def entry(self, filename: str) -> dict[str, Any]:
        """The first entry of the result for a file of this name."""
        return next(entry for entry in self.result["result"] if entry["filename"] == filename)


@dataclass
class FailedStory:
    """A customer whose job failed."""

    customer: Api
    job_id: int
    balances: list[float]
    messages: list[dict[str, Any]]


def encoded_picture(picture: np.ndarray, image_format: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format=image_format, **options)
    return buffer.getvalue()


def turned_picture(picture: np.ndarray) -> bytes:
    """A JPEG whose stored pixels lie on their side, with the EXIF note that puts them upright."""
    exif = Image.Exif()
    exif[0x0112] = ORIENTATION
    lying = np.ascontiguousarray(np.rot90(picture, k=1))  # anticlockwise
    return encoded_picture(lying, quality=95, exif=exif)


def story_files(story: Story, folder: Path) -> list[tuple[str, bytes]]:
    """What the customer uploads, in this order."""
    video = mediafiles.write_video(
        folder / "clip.mp4",
        frames=VIDEO_FRAMES,
        codec="libx264",
        size_wh=(1280, 720),
        rate_fps=RATE_FPS,
        paint=lambda index: story.moving[index].image,
    )
    archive = mediafiles.write_raw_zip(
        folder / "pictures.zip",
        [
            (b"same.jpg", mediafiles.image_bytes("JPEG")),
            (b"broken.jpg", mediafiles.image_bytes("JPEG")[:700]),
            (b"same.jpg", mediafiles.image_bytes("PNG")),
            (b"notes.txt", b"not a picture"),
            (EMOJI.encode(), mediafiles.image_bytes("WEBP")),
        ],
        flags=UTF8_NAMES,
    )
    gif = mediafiles.write_gif(folder / "moving.gif", frames=GIF_FRAMES, size_wh=(32, 24))
    return [
        ("street.jpg", encoded_picture(story.still.image, quality=95)),
        ("turned.jpg", turned_picture(story.still.image)),
        ("clip.mp4", video.read_bytes()),
        ("pictures.zip", archive.read_bytes()),
        ("still.gif", mediafiles.image_bytes("GIF")),
        ("moving.gif", gif.read_bytes()),
        (LONG, mediafiles.image_bytes("BMP")),
        ("doomed.tiff", mediafiles.image_bytes("TIFF", mediafiles.noise(seed=76))),
    ]


def spoil_stored_files(service: Service, content: bytes) -> int:
    """Damage the stored file of this content behind the service's back; how many there were."""
    found = [p for p in (service.data_dir / "media").rglob("*") if p.is_file()]
    found = [path for path in found if path.read_bytes() == content]
    for path in found:
        path.write_bytes(content[:100])
    return len(found)


def tell_story(anonymous: Api, service: Service, folder: Path) -> Story:
    """Upload everything, damage one file in storage, run a job and listen."""
    story = Story(
        customer=anonymous.new_customer(),
        outsider=anonymous.new_customer(),
        still=draw_scene(901),
        moving=list(draw_video_scene(902, VIDEO_FRAMES, frames_per_second=RATE_FPS)),
    )
    customer = story.customer
    story.balances["at first"] = customer.balance()
    customer.new_dataset(DATASET)
    for name, content in story_files(story, folder):
        answer = customer.upload(DATASET, content, name)
        assert answer.status_code == 201, answer.text
        story.uploads.append(answer.json())
        story.balances[name] = customer.balance()
    assert spoil_stored_files(service, content) == 1  # the last one's
    listed = customer.datasets()[DATASET]
    story.token_cost, story.dataset_id = listed["token_cost"], listed["dataset_id"]
    with story.outsider.watch() as outsider_socket, customer.watch() as socket:
        story.messages += receive(socket, 2)
        story.outsider_messages += receive(outsider_socket, 2)
        story.job_id = customer.submit(DATASET)
        story.balances["while the job runs"] = customer.balance()
        while not story.messages[-1]["message"].endswith(("completed.", "failed.", "aborted.")):
            story.messages += receive(socket, 1, timeout=240)
        story.balances["at last"] = customer.balance()
        story.messages += _silence(socket)
        story.outsider_messages += _silence(outsider_socket)
    story.result = customer.result(story.job_id)
    return story


def tell_failed_story(anonymous: Api, service: Service, folder: Path) -> FailedStory:
    """A job on one file that is damaged in storage after its upload."""
    customer = anonymous.new_customer()
    dataset = customer.new_dataset()
    content = mediafiles.image_bytes("PNG", mediafiles.noise(seed=77))
    assert customer.upload(dataset, content, "only.png").status_code == 201
    assert spoil_stored_files(service, content) == 1
    balances = [customer.balance()]
    with customer.watch() as socket:
        messages = receive(socket, 2)
        job_id = customer.submit(dataset)
        balances.append(customer.balance())
        messages += receive(socket, 2, timeout=240)
    balances.append(customer.balance())
    return FailedStory(customer, job_id, balances, messages)


def _silence(socket: Any) -> list[dict[str, Any]]:
    """What still comes within a second; nothing should."""
    try:
        return receive(socket, 1, timeout=1)
    except TimeoutError:
        return []
