"""The page in a browser: Chromium opens it from disk, as a reader does.

docs/contributing.md says how to install Chromium.
"""

import json
import re
from pathlib import Path

import pytest

import report

NAMES = ["script_hit", "script_half", "pipe_as_dent", "pipe_missed", "both", "dent_hit"]
NAMES += ["good_right", "good_alarm"]
WIDTHS = (360, 768, 1280, 1920)


class Opened:
    """A page in the browser, and what it complained of or asked for."""

    def __init__(self, browser, path: Path, **context):
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.page.set_default_timeout(15_000)
        self.faults: list[str] = []
        self.page.on("console", lambda message: self.faults.append(message.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.faults.append("dialog"), dialog.dismiss()))
        self.page.on("request", self._note)
        self.page.goto(path.as_uri())

    def _note(self, request) -> None:
        if not request.url.startswith(("file:", "data:")):
            self.faults.append(request.url)

    def names(self) -> list[str]:
        """Return the images of the gallery in the order in which they stand."""
        return self.page.locator("#cards .open").all_inner_texts()

    def to_gallery(self) -> None:
        """Move to the images: pictures far from the window are not drawn."""
        self.page.evaluate("document.getElementById('gallery').scrollIntoView()")

    def overflow(self) -> int:
        script = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        return self.page.evaluate(script)


@pytest.fixture
def open_page(browser):
    """Return what opens a file; at the end nothing was complained of, and nothing asked for."""
    opened = []

    def open_file(path: Path, **context) -> Opened:
        opened.append(Opened(browser, path, **context))
        return opened[-1]

    yield open_file
    for one in opened:
        one.context.close()
        assert one.faults == []


@pytest.fixture
def opened(open_page, reported) -> Opened:
    return open_page(reported / "report.html", viewport={"width": 1280, "height": 900})


def test_images_are_sorted_by_what_is_asked_for(opened):
    assert opened.names()[:3] == ["good_alarm", "pipe_as_dent", "pipe_missed"]  # IoU 0, by name
    assert opened.names()[-1] == "good_right"  # has none
    for key, first in (
        ("sure", "dent_hit"),
        ("area", "dent_hit"),
        ("contradiction", "pipe_as_dent"),
        ("name", "both"),
    ):
        opened.page.select_option("#sort", key)
        assert opened.names()[0] == first
        assert sorted(opened.names()) == sorted(NAMES)


def test_images_are_filtered_by_class_kind_and_name(opened):
    page = opened.page
    for control, value, expected in (
        ("#class", "class-0", ["both", "script_half", "script_hit"]),
        ("#only", "several", ["both"]),
        ("#only", "defect-free", ["good_alarm", "good_right"]),
        ("#only", "false-alarm", ["good_alarm"]),
        ("#only", "missed", ["pipe_missed"]),
        ("#only", "contradicted", ["good_alarm", "pipe_as_dent", "pipe_missed"]),
    ):
        page.select_option(control, value)
        assert sorted(opened.names()) == expected
        assert page.inner_text("#shown") == f"{len(expected)} of 8 images"
        page.select_option(control, "")
    page.select_option("#class", "class-2")
    page.fill("#name", "HIT")
    assert opened.names() == ["dent_hit"]
    page.fill("#name", "none")
    assert page.inner_text("#shown") == "0 of 8 images"


def test_the_slider_changes_how_strong_the_layers_are(opened):
    page = opened.page
    opened.to_gallery()
    layer = page.locator("#cards .card").first.locator(".over").first
    layer.wait_for()
    opacity = "element => Number(getComputedStyle(element).opacity)"
    assert layer.evaluate(opacity) == pytest.approx(0.6)
    slider = page.locator("#controls .opacity")
    slider.focus()
    page.keyboard.press("Home")
    assert layer.evaluate(opacity) == 0
    page.keyboard.press("End")
    assert layer.evaluate(opacity) == 1
    assert page.locator("#zoom .opacity").input_value() == "100"


def test_an_image_is_enlarged_and_left_by_keyboard_alone(opened):
    page = opened.page
    page.locator("#cards .open").first.focus()
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.textContent") == "pipe_as_dent"
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert page.inner_text("#zoom-title") == "pipe_as_dent"
    pressed = "#zoom-panels [aria-pressed=true]"
    assert page.inner_text(pressed) == "5 prediction"
    page.keyboard.press("6")
    assert page.inner_text(pressed) == "6 truth"
    stack = page.locator("#zoom-stage .stack")
    before = stack.bounding_box()["width"]
    page.keyboard.press("+")
    page.keyboard.press("+")
    assert stack.bounding_box()["width"] == pytest.approx(2 * before, abs=1)
    page.keyboard.press("-")
    assert stack.bounding_box()["width"] == pytest.approx(1.5 * before, abs=1)
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#zoom-title") == "pipe_missed"
    assert page.inner_text("#zoom-caption").startswith("label: a|b; mask: nothing; IoU 0.0 %")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#zoom-title") == "good_alarm"
    page.keyboard.press("Escape")
    assert not page.locator("#zoom").is_visible()
    assert page.evaluate("document.activeElement.textContent") == "good_alarm"


def test_a_click_enlarges_the_picture_that_was_clicked(opened):
    page = opened.page
    opened.to_gallery()
    page.locator("#cards .card").first.locator("figure", has_text="CAM").click()
    assert page.inner_text("#zoom-panels [aria-pressed=true]") == "3 CAM"
    page.click("#next")
    assert page.inner_text("#zoom-title") == "pipe_as_dent"
    page.click("#close")
    page.select_option("#only", "defect-free")
    page.click(".telling .open >> text=pipe_missed")  # which the filter hides
    assert page.inner_text("#zoom-title") == "pipe_missed"


def test_rows_behind_the_first_of_a_stage_are_unfolded(opened):
    page = opened.page
    assert not page.get_by_text("(oracle)").is_visible()
    page.click(".fold")
    assert page.get_by_text("(oracle)").is_visible()
    assert page.locator(".fold").get_attribute("aria-expanded") == "true"


def test_class_names_are_shown_as_text(opened):
    names = opened.page.locator(".bar-name").all_inner_texts()
    assert [name.split("\n")[0].strip() for name in names][:1] == ["<script>alert(1)</script>"]
    assert names[1].startswith("a|b")
    assert opened.page.locator("#class option").nth(1).inner_text() == "<script>alert(1)</script>"
    assert opened.page.locator("svg text", has_text="a|b").count() > 2
    assert opened.page.locator("script").count() == 3  # two of data, one of the page


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_its_window_in_light_and_dark(open_page, reported, width, scheme):
    size = {"width": width, "height": 800}
    opened = open_page(reported / "report.html", viewport=size, color_scheme=scheme)
    assert opened.overflow() == 0
    back, text = opened.page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    levels = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (back, text)]
    assert (levels[0] > 600 > 200 > levels[1]) if scheme == "light" else levels[0] < 100 < levels[1]
    ink = opened.page.locator("svg text").first.evaluate("e => getComputedStyle(e).fill")
    assert ink == text
    opened.page.locator("#cards .open").first.click()
    assert opened.overflow() == 0
    assert opened.page.locator("#zoom").bounding_box()["width"] <= width


def test_pictures_are_decoded_when_they_come_near(open_page, reported, tmp_path):
    page = (reported / "report.html").read_text()
    data = re.search(r'id="images">(.*?)</script>', page)[1]
    images = json.loads(data)
    many = [{**images[0], "name": f"copy_{i:03d}"} for i in range(300)]
    path = tmp_path / "many.html"
    path.write_text(page.replace(data, json.dumps(many).replace("<", "\\u003c")))
    opened = open_page(path, viewport={"width": 1280, "height": 900})
    filled = "document.querySelectorAll('#cards img').length"
    opened.page.wait_for_timeout(300)
    assert opened.page.evaluate(filled) < 200
    opened.page.locator("#cards .card").last.scroll_into_view_if_needed()
    opened.page.locator("#cards .card").last.locator("img").first.wait_for()
    assert opened.page.evaluate(filled) < 600  # of 300 x 11


def test_every_picture_can_be_decoded(opened):
    broken = """async () => {
      const sources = [...document.images].map((image) => image.src);
      let faults = 0;
      for (const image of JSON.parse(document.getElementById("images").textContent))
        for (const one of JSON.parse(document.getElementById("panels").textContent))
          sources.push(`data:${one.mime};base64,${image.pictures[one.key]}`);
      for (const source of sources) {
        const image = new Image();
        image.src = source;
        await image.decode().catch(() => faults++);
        if (!image.naturalWidth) faults++;
      }
      return [sources.length, faults];
    }"""
    count, faults = opened.page.evaluate(broken)
    assert count >= 48
    assert faults == 0


def test_the_page_prints_without_its_controls(opened, tmp_path):
    opened.page.emulate_media(media="print")
    assert not opened.page.locator("#controls").is_visible()
    assert opened.page.locator(".figures").is_visible()
    opened.page.pdf(path=str(tmp_path / "report.pdf"))
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")


def test_a_run_without_masks_has_a_page_too(open_page, without_masks):
    opened = open_page(without_masks / "report.html", viewport={"width": 1280, "height": 900})
    assert opened.page.locator(".figure-title").all_inner_texts() == [
        "Defects flagged", "False alarms", "Minutes",
    ]  # fmt: skip
    assert sorted(opened.names()) == sorted(NAMES)
    options = opened.page.locator("#sort option").all_inner_texts()
    assert options == ["least sure", "largest area", "label contradicted", "name"]


def test_a_comparison_shows_what_changed_most_first(open_page, reported, without_masks, tmp_path):
    report.main([str(reported), str(reported), "--out", str(tmp_path)])
    opened = open_page(tmp_path / "comparison.html", viewport={"width": 360, "height": 800})
    assert opened.overflow() == 0
    assert sorted(opened.names()) == sorted(NAMES)
    opened.page.locator("#cards .open").first.click()
    assert opened.page.locator("#zoom-panels button").count() == 4
