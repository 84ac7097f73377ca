"""demo.py's page in a browser: Chromium uses it as a person does.

docs/contributing.md says how to install Chromium.
"""

import base64
import io
import json
import threading
import time

import numpy as np
import pytest
import uvicorn
from PIL import Image

import demo
from datasets.outlines import read_outlines

DROP = """([content, name]) => {
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], name));
  const event = { dataTransfer, bubbles: true, cancelable: true };
  document.body.dispatchEvent(new DragEvent("drop", event));
}"""
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture
def address(demonstration):
    """Serve the page; return where."""
    server = uvicorn.Server(uvicorn.Config(demonstration.app(), log_level="warning"))
    with demo.bound("127.0.0.1", 0) as opened:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
        thread.start()
        while not server.started:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{opened.getsockname()[1]}/"
        server.should_exit = True
        thread.join()


@pytest.fixture
def open_page(browser, address):
    """Return what opens the page; at the end nothing was complained of, nobody else was asked."""
    contexts, faults = [], []

    def opened(width: int = 1400, height: int = 900, scheme: str = "light", place: str = ""):
        size = {"width": width, "height": height}
        contexts.append(browser.new_context(viewport=size, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: (faults.append("dialog"), dialog.dismiss()))
        page.on(
            "request",
            lambda one: (
                None if one.url.startswith((address, "data:", "blob:")) else faults.append(one.url)
            ),
        )
        page.goto(address + place)
        page.wait_for_function("document.querySelectorAll('#pictures option').length === 2")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert faults == []


def drop(page, content: bytes, name: str) -> None:
    page.evaluate(DROP, [base64.b64encode(content).decode(), name])


def png(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG")
    return content.getvalue()


def test_a_dropped_image_is_judged_and_a_bad_one_named(open_page, draw_picture):
    page = open_page()
    drop(page, b"0" * 200_001, "large.png")
    page.get_by_text("large.png: expected at most 0.2 MB, got 0.2 MB").wait_for()
    drop(page, png(draw_picture((2, 200, 3, 3, 9, 9))), "new.png")
    page.locator("#results").wait_for()
    assert page.inner_text("#verdict") == "defective"
    assert not page.locator("#error").is_visible()
    names = page.locator("#scores .bar-name").all_inner_texts()
    assert names == ["<script>alert(1)</script>", "a|b", "dent"]
    assert page.locator("#class option").first.inner_text() == "<script>alert(1)</script>"
    assert page.locator("#scores .bar-value").all_inner_texts() == ["0.00", "0.00", "0.78"]
    shown = "['base', 'mask'].map((id) => document.getElementById(id).naturalWidth)"
    page.wait_for_function(f"{shown}.every(Boolean)")
    assert page.evaluate(shown) == [60, 60]
    assert page.is_disabled("[name=layer][value=cam]")  # no localiser was asked


def test_sliders_change_mask_objects_and_downloads(open_page, networks):
    page = open_page(place="#a.png")
    counts = page.locator("#counts")
    page.get_by_text("3 objects").wait_for()
    page.focus("#threshold")
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    page.get_by_text("2 objects").wait_for()
    assert page.inner_text("#threshold-value") == "0.45"
    assert "threshold=0.45" in page.get_attribute("#get-mask", "href")
    page.focus("#area")
    page.keyboard.press("End")
    page.get_by_text("1 object", exact=True).wait_for()
    assert page.inner_text("#area-value") == "120 px"  # 5 % of 40 x 60
    page.click("#reset")
    page.get_by_text("3 objects").wait_for()
    assert counts.inner_text() == "3 objects"
    page.focus("#opacity")
    page.keyboard.press("Home")
    assert page.locator("#mask").evaluate("e => getComputedStyle(e).opacity") == "0"
    assert networks.num_images == 1


def test_a_mask_is_corrected_with_the_mouse_and_saved_beside_its_image(
    open_page, photos_dir, demonstration
):
    page = open_page(place="#a.png")
    page.get_by_text("3 objects").wait_for()
    page.click("[aria-label='Remove object 3']")
    page.select_option("[aria-label='Class of 2']", "dent")
    assert page.is_disabled("#threshold")
    page.select_option("#class", "a|b")
    page.click("#draw")
    box = page.locator("#lines").bounding_box()
    for x, y in ((40, 20), (55, 20), (55, 30), (40, 30), (40, 20)):  # the first one closes
        page.mouse.click(box["x"] + x * box["width"] / 60, box["y"] + y * box["height"] / 40)
    page.get_by_text("3 objects, 1 removed, 1 drawn").wait_for()
    page.click("#save")
    page.get_by_text("a.json was written beside a.png.").wait_for()
    page.locator("[name=layer][value=correction]:checked").wait_for()
    assert "a.png (annotated)" in page.locator("#pictures option").all_inner_texts()

    names = demonstration.run.class_names
    truth = read_outlines(photos_dir / "a.json", photos_dir / "a.png", (40, 60), names)
    counts = np.bincount(truth.reshape(-1), minlength=4)
    assert counts[[1, 3]].tolist() == [375, 50]
    assert counts[2] == pytest.approx(150, abs=15)
    assert (truth[22:28, 42:53] == 2).all()

    page.click("#undo")
    page.click("#save")  # asks, as the file is there
    page.get_by_text("Replace it?").wait_for()
    page.click("#ask-no")
    assert len(json.loads((photos_dir / "a.json").read_text())["shapes"]) == 3


def test_an_image_is_opened_and_corrected_by_keyboard_alone(open_page, photos_dir, networks):
    page = open_page()
    page.focus("#pictures")
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    page.get_by_text("0 objects").wait_for()
    assert page.inner_text("#verdict") == "ok"
    page.focus("#draw")
    page.keyboard.press("Enter")
    keys = ["ArrowRight", "Space", *["ArrowRight"] * 9, "Space", *["ArrowDown"] * 9, "Space"]
    for key in [*keys, "Shift+ArrowDown", "Space", "Backspace", "Enter"]:
        page.keyboard.press(key)
    page.get_by_text("0 objects, 1 drawn").wait_for()
    assert page.evaluate("document.activeElement.id") == "draw"
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")  # draws nothing
    page.focus("#pictures")
    page.keyboard.press("Enter")  # what is not saved is asked for
    page.get_by_text("The correction is not saved.").wait_for()
    page.keyboard.press("Escape")
    page.focus("#save")
    page.keyboard.press("Enter")
    page.get_by_text("good.json was written beside good.png.").wait_for()
    (shape,) = json.loads((photos_dir / "deep/good.json").read_text())["shapes"]
    assert shape["points"] == [[30, 20], [39, 20], [39, 29]]
    assert networks.num_images == 1


def test_the_correction_of_an_upload_is_a_download(open_page, draw_picture):
    page = open_page()
    drop(page, png(draw_picture((2, 200, 3, 3, 9, 9))), "new.part.png")
    page.get_by_text("1 object", exact=True).wait_for()
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "new.part.json"
    shapes = json.loads(download.value.path().read_text())["shapes"]
    assert [shape["label"] for shape in shapes] == ["dent"]


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1000, "dark"), (1920, "light")])
def test_the_page_fits_its_window(open_page, width, scheme):
    page = open_page(width, 800, scheme)
    assert page.evaluate(OVERFLOW) == 0
    page.select_option("#pictures", "a.png")
    page.click("#open")
    page.get_by_text("3 objects").wait_for()
    page.click("#draw")
    assert page.evaluate(OVERFLOW) == 0
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert back == {"light": "rgb(255, 255, 255)", "dark": "rgb(18, 20, 23)"}[scheme]
