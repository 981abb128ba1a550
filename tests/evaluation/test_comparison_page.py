"""The comparison page in a real browser, and the maps on it."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpcm_scale.codec.codec import Codec
from hpcm_scale.codec.images import Picture
from hpcm_scale.evaluation.codecs import model_settings
from hpcm_scale.evaluation.comparison_page import write_page
from hpcm_scale.evaluation.maps import bit_map, coloured, error_map
from hpcm_scale.weights.model_file import load_model
from tests.evaluation.conftest import photo

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
MEMORY = 1 << 30


@pytest.mark.parametrize("sides", [(256, 512), (200, 300)])
def test_the_bit_map_adds_up_to_what_the_file_costs(models: list[Path], sides: tuple[int, int]):
    pixels = photo(*sides)
    costs = bit_map(load_model(models[1]).network, pixels, MEMORY)
    assert costs.shape == (-(-sides[0] // 16), -(-sides[1] // 16))
    estimate = Codec.load(models[1], portable=False).compress(Picture(pixels), estimate=True)
    # Of a padded canvas the map leaves out what hyper-latents cost beyond the picture.
    tolerance = 1e-4 if sides == (256, 512) else 0.05
    assert costs.sum() == pytest.approx(estimate.estimated_bits, rel=tolerance)


def test_error_maps():
    x = np.zeros((4, 5, 3), np.uint8)
    y = x.copy()
    y[1, 2] = (30, 60, 90)
    errors = error_map(y, x)
    assert errors[1, 2] == 60
    assert errors.sum() == 60
    assert np.array_equal(errors, error_map(x, y))
    colours = coloured(errors, 32, "magma")
    assert colours.shape == (4, 5, 3)
    assert colours[1, 2].sum() > colours[0, 0].sum()


@pytest.fixture(scope="module")
def page(models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    pixels = photo(160, 208)
    pixels[40:90, 50:120] = (200, 30, 40)
    Image.fromarray(pixels).save(folder / "<b>&.png")
    (setting,) = model_settings([models[1]], "cpu", MEMORY)
    target = folder / "comparison.html"
    rivals = ("jpeg", "webp", "jpeg2000", "avif", "jxl")
    write_page(setting, rivals, [folder / "<b>&.png"], "cpu", MEMORY, target)
    return target


def _loaded(page: Path, script: str = "") -> str:
    """The DOM after the page's own script and then `script`."""
    if script:
        code = (
            f"<script>Promise.all(loading).then(() => setTimeout(() => {{ {script} }}));</script>"
        )
        page = page.with_name("driven.html")
        text = page.with_name("comparison.html").read_text()
        page.write_text(text.replace("</body>", f"{code}</body>"))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--virtual-time-budget=20000", f"--user-data-dir={page.parent}/profile"]
    command += [f"file://{page}"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout


def test_the_page_needs_nothing_else(page: Path):
    text = page.read_text()
    assert not re.search(r"https?://|<link|src=\"(?!data:)|@import", text)
    values = json.loads(re.search(r"const DATA = (.*);\n", text).group(1))
    (picture,) = values["pictures"]
    assert picture["name"] == "<b>&.png"
    names = [view["name"] for view in picture["views"]]
    assert names == ["HPCM tiny-0.05", "JPEG", "WebP", "JPEG 2000", "AVIF", "JPEG XL"]
    sizes = [view["bytes"] for view in picture["views"]]
    assert max(abs(size / sizes[0] - 1) for size in sizes[1:]) < 0.15


@browser
def test_a_browser_draws_it(page: Path):
    """Pixels of the crops are those of the pictures; slider and choices change what is shown."""
    script = """
      const canvases = [...document.querySelectorAll("canvas")];
      const pixel = canvas => [...canvas.getContext("2d").getImageData(64, 64, 1, 1).data];
      const stage = document.querySelector(".stage");
      const press = (x, y) => {
        const frame = stage.getBoundingClientRect();
        stage.setPointerCapture = () => {};
        stage.dispatchEvent(new PointerEvent("pointerdown", {pointerId: 1,
          clientX: frame.left + x * frame.width, clientY: frame.top + y * frame.height}));
        stage.onpointerup();
      };
      press(85 / 208, 64 / 160);
      const slider = document.querySelector("input[type=range]");
      slider.value = 25;
      slider.dispatchEvent(new Event("input"));
      const over = document.querySelector("img[alt=right]");
      const first = over.src;
      const [left, right, mode] = document.querySelectorAll("select");
      const choose = (select, value) => {
        select.value = value;
        select.dispatchEvent(new Event("change"));
        return over.src;
      };
      const found = {clip: over.style.clipPath, crops: canvases.map(pixel), first};
      found.jpeg = choose(right, 2).slice(0, 15);
      found.errors = choose(mode, 1).slice(0, 15);
      choose(right, 1);
      found.bits = choose(mode, 2);
      found.blocks = over.classList.contains("blocks");
      found.failed = document.body.dataset.failed;
      document.body.dataset.found = JSON.stringify(found);
    """
    dom = _loaded(page, script)
    assert 'data-ready="true"' in dom
    text = re.search(r'data-found="([^"]*)"', dom).group(1).replace("&quot;", '"')
    found = json.loads(text.replace("&amp;", "&"))
    assert found["clip"].replace("0px", "0").endswith("25%)")
    original, _, *rivals = found["crops"]
    assert original[:3] == [200, 30, 40]  # the patch, where the picture was pressed
    assert len(rivals) == 5
    for colour in rivals:
        assert abs(colour[0] - 200) < 60
    values = json.loads(re.search(r"const DATA = (.*);\n", page.read_text()).group(1))
    (picture,) = values["pictures"]
    assert found["first"] == picture["views"][0]["source"]
    assert found["jpeg"] == "data:image/jpeg"
    assert found["errors"] == "data:image/webp"
    assert found["bits"] == picture["bits"]
    assert found["blocks"]
    assert "failed" not in found
    assert "&lt;b&gt;&amp;.png, 208×160</h2>" in dom
