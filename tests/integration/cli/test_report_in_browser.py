"""The report of `tessera profile show --html` as a browser shows it, without a network."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tessera.cli import views
from tessera.cli.report import report
from tessera.testing.builders import a_latency_row, a_profile, a_variant_key
from tessera.wire import encode_profile

pytestmark = [pytest.mark.chromium, pytest.mark.slow]

WIDTH, HEIGHT = 1200, 1500
BATCHES, SWEEPS = (1, 2, 4, 8), ((1, 1), (1, 2), (2, 1))
VARIANTS = {"aten-fp32": (9.0, 0.97), "ort-fp32": (5.0, 0.97), "ort-int8": (2.0, 0.95)}


def profile(variant: str, ms: float, accuracy: float) -> views.Plain:
    rows = tuple(
        a_latency_row(batch, threads, ms * batch + 1.0, mean_ms=ms * batch + 1.0, concurrency=concurrency)
        for threads, concurrency in SWEEPS
        for batch in BATCHES
    )
    message = encode_profile(a_profile(a_variant_key(variant=variant), rows=rows))
    message.usd_per_hour, message.cpu_count, message.usd_per_1000 = 0.096, 2, 0.001 * ms
    message.accuracy, message.accuracy_source = accuracy, "evaluation"
    return views.profile(message)


@dataclass
class Shown:
    """What the browser made of a page: its elements after all scripts ran, and its picture (rows x columns x RGB)."""

    elements: str
    picture: np.ndarray

    @property
    def drawings(self) -> list[tuple[float, float]]:
        """Width and height of every drawing, in pixels."""
        found = re.findall(r'<svg class="main-svg"[^>]* width="([0-9.]+)" height="([0-9.]+)"', self.elements)
        return [(float(width), float(height)) for width, height in found]

    @property
    def coloured_share(self) -> float:
        """Of the pixels of the upper half, where the Pareto picture is: those that are neither white nor grey."""
        upper = self.picture[: HEIGHT // 2].astype(int)
        return float((upper.max(axis=2) - upper.min(axis=2) > 40).mean())


@pytest.fixture
def opened(chromium_path: str, tmp_path: Path):
    def open_page(page: str) -> Shown:
        file, picture = tmp_path / "page.html", tmp_path / "page.png"
        file.write_text(page)
        quiet = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--host-resolver-rules=MAP * ~NOTFOUND"]
        sized = [f"--window-size={WIDTH},{HEIGHT}", "--virtual-time-budget=10000", f"--user-data-dir={tmp_path / 'profile'}"]
        common = [chromium_path, *quiet, *sized]
        subprocess.run([*common, f"--screenshot={picture}", file.as_uri()], check=True, capture_output=True, timeout=120)
        dumped = subprocess.run([*common, "--dump-dom", file.as_uri()], check=True, capture_output=True, text=True, timeout=120)
        with Image.open(picture) as image:
            pixels = np.asarray(image.convert("RGB"))
        return Shown(re.sub(r"<script.*?</script>", "", dumped.stdout, flags=re.DOTALL), pixels)

    return open_page


def test_the_pareto_picture_is_drawn_in_a_browser(opened) -> None:
    profiles = [profile(name, *figures) for name, figures in VARIANTS.items()]
    shown = opened(report(profiles, "Profiles of <digits>"))
    assert len(shown.drawings) >= 2
    assert all(width > 800 and height > 400 for width, height in shown.drawings)
    rows = len(VARIANTS) * len(SWEEPS) * len(BATCHES)
    alone = len(VARIANTS) * 2 * len(BATCHES)
    assert shown.elements.count('class="point"') == rows + alone, "every row in the first picture, those of one instance in the second"
    assert shown.elements.count('class="js-line"') == len(VARIANTS) * 2, "a line for each thread count"
    assert shown.picture.shape == (HEIGHT, WIDTH, 3)
    assert shown.coloured_share > 0.005
    assert "Profiles of &lt;digits&gt;" in shown.elements
    for name in VARIANTS:
        assert shown.elements.count(f"digits@1/{name}") >= 3, "in both legends and over its tables"


def test_without_its_library_nothing_is_drawn(opened) -> None:
    """What the test above looks at is really what the scripts in the file draw."""
    page = report([profile("ort-fp32", 5.0, 0.97)], "Profiles")
    shown = opened(re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL))
    assert shown.drawings == []
    assert shown.coloured_share < 0.001
    assert "digits@1/ort-fp32" in shown.elements
