"""Takes a page of the service as it looks: wide and narrow, light and dark."""

from pathlib import Path

from PIL import Image
from playwright.sync_api import Locator, Page

SIZES_WH = {"wide": (1440, 900), "narrow": (390, 844)}
SCHEMES = ("light", "dark")
MOST_COLOURS = 256
TALLEST_PAGE = 6000  # pixels; beyond that a page only repeats itself
# Found before the pictures are taken, because no picture shows them.
CONTENT_HEIGHT = "document.documentElement.scrollHeight"
TOO_WIDE = "document.documentElement.scrollWidth > innerWidth"


class PageError(Exception):
    """A page that nobody should get to see; the text says what is wrong with it."""


class Camera:
    """Saves every place as `<folder>/<name>-<size>-<scheme>.png`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.faults: list[str] = []

    def take(self, page: Page, name: str, *, whole: bool = True, reload: bool = False) -> None:
        """Take a page in every size and scheme.

        With `whole` also what is below the screen; with `reload` for pages that look for the
        scheme only when they load.
        """
        for scheme in SCHEMES:
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            if reload:
                page.reload()
            for size, (width, height) in SIZES_WH.items():
                page.set_viewport_size({"width": width, "height": height})
                show_lazy_pictures(page)
                if page.evaluate(TOO_WIDE):
                    self.faults.append(f"{name} is wider than the screen ({size}).")
                if whole:  # a higher screen, because bars at its edge would cover a longer page
                    tall = max(height, min(page.evaluate(CONTENT_HEIGHT), TALLEST_PAGE))
                    page.set_viewport_size({"width": width, "height": tall})
                path = self.folder / f"{name}-{size}-{scheme}.png"
                page.screenshot(path=path, animations="disabled")

    def check(self) -> None:
        """Raises PageError when a page did not fit."""
        if self.faults:
            raise PageError("\n".join(self.faults))


def show_lazy_pictures(page: Page) -> None:
    """Wait for the pictures of the page, also of those that load when they come near the screen."""
    page.evaluate(
        """async () => {
            for (const picture of document.images) picture.loading = "eager";
            const shown = [...document.images].filter((one) => one.checkVisibility());
            const bearable = (one) => one.decode().catch(() => {});
            const late = new Promise((resolve) => setTimeout(resolve, 5000));
            await Promise.race([Promise.all(shown.map(bearable)), late]);
            await document.fonts.ready;
        }"""
    )


def save_picture(target: Page | Locator, path: Path, *, largest_bytes: int) -> None:
    """Save a picture for a text; with fewer colours when it is too large. Raises PageError."""
    target.screenshot(path=path, animations="disabled")
    if path.stat().st_size >= largest_bytes:
        # This method keeps the rare colours, which are those of the vehicles.
        with Image.open(path) as picture:
            rgb = picture.convert("RGB")
        small = rgb.quantize(MOST_COLOURS, Image.Quantize.MAXCOVERAGE, kmeans=3)
        small.save(path, optimize=True)
    if path.stat().st_size >= largest_bytes:
        raise PageError(f"{path.name} has {path.stat().st_size} bytes, too many for a text.")
