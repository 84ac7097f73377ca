"""demo.py without a browser: what is served, written and refused."""

import io
import json
import socket
import sys
import zlib

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from starlette.testclient import TestClient

import demo
from configs.command_line import ROOT
from datasets.files import read_image
from datasets.outlines import read_outlines
from demonstration.kept import MOST_RESULTS
from demonstration.server import TEXTS, Demonstration, Place
from inference.predictor import load_run
from inference.results import Options

ADDRESS = "http://127.0.0.1:8000"
RED, GREEN, BLUE = range(3)
EMPTY = {"view": {}, "kept": {}, "drawn": []}


@pytest.fixture
def client(demonstration):
    return TestClient(demonstration.app(), base_url=ADDRESS, raise_server_exceptions=False)


def png(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG")
    return content.getvalue()


def chunk(content: bytes) -> bytes:
    """Return a chunk of a PNG file of its type and data."""
    length = (len(content) - 4).to_bytes(4, "big")
    return length + content + zlib.crc32(content).to_bytes(4, "big")


def opened(client, name="a.png") -> dict:
    answer = client.post(f"/pictures/{name}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def mask_of(client, key: str, **view) -> np.ndarray:
    answer = client.get(f"/results/{key}/mask.png", params=view)
    return np.array(Image.open(io.BytesIO(answer.content)))


def refused(answer, status: int, *words: str) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert "\n" not in error
    for word in words:
        assert word in error


@pytest.mark.parametrize("folders", [("stac", "segmentation"), ("segmentation",), ("stac",)])
def test_masks_scores_and_verdicts_are_those_of_a_prediction(
    untrained_run, photos, tmp_path, folders
):
    for folder in folders:
        (tmp_path / folder).symlink_to(untrained_run / folder)
    run = load_run(tmp_path, "cpu", Options(min_area=0))
    app = Demonstration(run, Place("run", photos, "127.0.0.1", 10**6)).app()
    client = TestClient(app, base_url=ADDRESS)
    said, path = opened(client), photos / "a.png"

    expected = load_run(tmp_path, "cpu").predict(path)
    np.testing.assert_array_equal(mask_of(client, said["key"]), expected.mask)
    assert said["verdict"] == expected.verdict
    assert said["class_scores"] == pytest.approx(expected.class_scores)
    cam = client.get(f"/results/{said['key']}/cam")
    assert cam.status_code == (200 if "stac" in folders else 404)
    for threshold in (0.3, 0.6):
        cut = load_run(tmp_path, "cpu", Options(threshold=threshold)).predict(path)
        assert cut.mask.any() or threshold == 0.6
        shown = mask_of(client, said["key"], threshold=threshold)
        np.testing.assert_array_equal(shown, cut.mask)


def test_sliders_cut_and_filter_without_the_networks(client, networks):
    said = opened(client)
    assert [(one["class"], one["area_px"]) for one in said["objects"]] == [
        ("<script>alert(1)</script>", 375), ("a|b", 50), ("dent", 6),
    ]  # fmt: skip
    assert set(np.unique(mask_of(client, said["key"], threshold=0.5))) == {0, 1, 3}
    assert set(np.unique(mask_of(client, said["key"], min_area=7))) == {0, 1, 2}
    state = client.get(f"/results/{said['key']}?threshold=0.99").json()
    assert (state["verdict"], state["objects"]) == ("ok", [])
    assert networks.num_images == 1


@pytest.mark.parametrize("query", ["threshold=2", "threshold=nan", "min_area=-1", "other=1"])
def test_sliders_that_are_nowhere_are_an_error_of_one_line(client, query):
    key = opened(client)["key"]
    refused(client.get(f"/results/{key}?{query}"), 422, query.split("=")[0])


def test_downloads_say_the_same(client):
    said = opened(client)
    mask = mask_of(client, said["key"])
    page = client.get(f"/results/{said['key']}/result.json").json()
    assert (page["verdict"], page["height"], page["width"]) == ("defective", 40, 60)
    assert list(page["areas_px"].values()) == [375, 50, 6]
    answer = client.get(f"/results/{said['key']}/coco.json")
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''a_coco.json"
    coco = answer.json()
    drawn = np.zeros_like(mask)
    for one in coco["annotations"]:
        drawn[coco_mask.decode(one["segmentation"]).astype(bool)] = one["category_id"]
    np.testing.assert_array_equal(drawn, mask)
    assert coco["images"] == [{"id": 1, "file_name": "a.png", "height": 40, "width": 60}]


def corrected(said: dict, **more) -> dict:
    """Return a correction that keeps the ring, renames the green block and drops the blue one."""
    kept = {one["index"]: one["class"] for one in said["objects"] if one["area_px"] > 6}
    kept[next(one["index"] for one in said["objects"] if one["class"] == "a|b")] = "dent"
    triangle = {"label": "a|b", "points": [[50, 20], [60, 20], [50, 30]]}
    return {"view": {}, "kept": kept, "drawn": [triangle]} | more


def test_a_correction_is_a_labelme_file_that_is_read_back(client, photos_dir, demonstration):
    said = opened(client)
    answer = client.post(f"/results/{said['key']}/correction", json=corrected(said))
    assert (answer.status_code, answer.json()["file"]) == (200, "a.json")

    names = demonstration.run.class_names
    truth = read_outlines(photos_dir / "a.json", photos_dir / "a.png", (40, 60), names)
    expected = mask_of(client, said["key"])
    expected[expected == 3] = 0
    expected[expected == 2] = 3
    assert not truth[12, 12]  # the hole of the ring
    expected[20:30, 50:] = truth[20:30, 50:]
    np.testing.assert_array_equal(truth, expected)
    inside = truth[20:30, 50:]
    assert set(np.unique(inside)) == {0, 2}
    assert inside.astype(bool).sum() == pytest.approx(50, abs=10)  # of 10 x 10 / 2

    listed = {one["name"]: one["annotated"] for one in client.get("/pictures").json()["pictures"]}
    assert listed == {"a.png": True, "deep/good.png": False}
    content = json.loads((photos_dir / "a.json").read_text())
    assert content["imagePath"] == "a.png"
    assert [shape["shape_type"] for shape in content["shapes"]] == ["mask", "mask", "polygon"]
    assert content["shapes"][0]["points"] == [[5.0, 5.0], [24.0, 24.0]]  # ends included


def test_an_annotation_that_is_there_is_replaced_only_when_asked(client, photos_dir):
    (photos_dir / "a.json").write_text("mine")
    said = opened(client)
    address = f"/results/{said['key']}/correction"
    refused(client.post(address, json=corrected(said)), 409, "a.json", "replace")
    assert (photos_dir / "a.json").read_text() == "mine"
    assert client.post(address, json=corrected(said, replace=True)).status_code == 200
    assert "shapes" in json.loads((photos_dir / "a.json").read_text())


def test_an_image_without_a_defect_gets_a_file_without_shapes(client, photos_dir):
    said = opened(client, "deep/good.png")
    assert client.post(f"/results/{said['key']}/correction", json=EMPTY).status_code == 200
    assert json.loads((photos_dir / "deep/good.json").read_text())["shapes"] == []


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"kept": {"0": "rust"}}, 400, ("dent", "rust")),
        ({"kept": {"7": "dent"}}, 400, ("below 3", "got 7")),
        ({"drawn": [{"label": "dent", "points": [[1, 1], [2, 2]]}]}, 422, ("points",)),
        ({"drawn": [{"label": "dent", "points": [[0, 0], [9, 0], [9e9, 9]]}]}, 422, ("points",)),
        ({"file": "/etc/passwd"}, 422, ("file",)),
    ],
)
def test_a_wrong_correction_writes_nothing(client, photos_dir, change, status, words):
    said = opened(client)
    answer = client.post(f"/results/{said['key']}/correction", json=corrected(said) | change)
    refused(answer, status, *words)
    assert sorted(path.name for path in photos_dir.rglob("*")) == ["a.png", "deep", "good.png"]


def test_a_correction_holds_no_more_objects_than_are_listed(client, draw_picture, photos_dir):
    dots = [(RED, 250, 2 * (i // 20), 3 * (i % 20), 1, 1) for i in range(400)]
    said = client.post("/uploads?name=dots.png", content=png(draw_picture(*dots))).json()
    assert (said["num_objects"], len(said["objects"])) == (400, 300)
    answer = client.post(f"/results/{said['key']}/correction", json=EMPTY)
    refused(answer, 400, "at most 300", "least area")


def test_an_upload_leaves_no_file_whatever_its_name(client, photos_dir, draw_picture):
    before = sorted(photos_dir.parent.rglob("*"))
    content = png(draw_picture((BLUE, 255, 3, 3, 9, 9)))
    for name in ("../../in/a.png", "/etc/a.png", "%2e%2e/a.png", 'a"\r\nX: y<b>.png'):
        said = client.post("/uploads", params={"name": name}, content=content)
        if said.status_code == 400:  # names that no file can have
            refused(said, 400, "name")
            continue
        said = said.json()
        assert "/" not in said["name"]
        answer = client.post(f"/results/{said['key']}/correction", json=EMPTY)
        assert answer.json()["file"] == ""
        assert answer.json()["content"]["imagePath"] == said["name"]
    refused(client.post("/uploads?name=", content=content), 400, "name")
    refused(client.post("/uploads", content=content), 422, "name")
    assert sorted(photos_dir.parent.rglob("*")) == before


@pytest.mark.parametrize(
    "name",
    ["../secret.png", "%2e%2e/secret.png", "/etc/passwd", "deep", "b.png", "deep%2f%2e%2e%2fa.png"],
)
def test_only_pictures_of_the_list_are_opened(client, name):
    answer = client.post(f"/pictures/{name}")
    assert answer.status_code in (404, 405)
    assert "error" in answer.json()


def test_uploads_that_are_too_large_or_no_picture_are_refused(client):
    def post(content):
        return client.post("/uploads?name=x.png", content=content)

    refused(post(b"0" * 200_001), 413, "at most 0.2 MB", "--max-mb")
    refused(post(iter([b"0" * 100_000] * 3)), 413, "at most 0.2 MB")  # whose length is not said
    refused(post(b"no picture"), 400, "x.png", "PNG, JPEG")
    refused(post(b""), 400, "x.png", "empty")
    head = b"IHDR" + (30_000).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    huge = b"\x89PNG\r\n\x1a\n" + b"".join(map(chunk, (head, b"IDAT", b"IEND")))
    refused(post(huge), 400, "x.png", "900000000 pixels")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1:8000@evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example:8000"}, 403),
        ({"host": ""}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:9000"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 403),
        ({"content-length": "-1"}, 413),
        ({"host": "localhost:8000", "origin": "http://localhost:8000"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"origin": ADDRESS, "sec-fetch-site": "same-origin"}, 200),
    ],
)
def test_other_sites_are_refused(client, networks, headers, status):
    answer = client.post("/pictures/a.png", headers=headers)
    assert answer.status_code == status
    assert networks.num_images == (status == 200)
    assert "script-src 'self'" in answer.headers["content-security-policy"]


def test_a_link_from_elsewhere_leads_to_the_page(client):
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert client.get("/", headers=headers).status_code == 200
    headers["sec-fetch-mode"] = "no-cors"
    refused(client.get("/", headers=headers), 403, "another site")


def test_the_page_escapes_names_and_asks_nobody_else(client):
    page = client.get("/").text
    assert "<script>alert" not in page
    assert "\\u003cscript\\u003ealert(1)" in page
    texts = [page, *(client.get(path).text for path in TEXTS)]
    assert all(len(text) > 1000 for text in texts)
    assert not [
        text for text in texts if "https:" in text or "//fonts" in text or "@import" in text
    ]
    assert " style=" not in page and " onclick=" not in page  # the policy forbids them
    assert [client.get(path).status_code for path in ("/docs", "/openapi.json")] == [404, 404]


def test_the_oldest_result_is_dropped(client):
    keys = [opened(client)["key"] for _ in range(MOST_RESULTS + 1)]
    refused(client.get(f"/results/{keys[0]}"), 404, "Open the image again")
    assert all(client.get(f"/results/{key}").status_code == 200 for key in keys[1:])


def test_large_images_are_shown_smaller_and_kept_whole(demonstration, draw_picture):
    large = np.kron(draw_picture((RED, 255, 10, 10, 10, 10)), np.ones((40, 40, 1), np.uint8))
    demonstration.place = demonstration.place._replace(max_bytes=10**7)
    client = TestClient(demonstration.app(), base_url=ADDRESS)
    said = client.post("/uploads?name=large.png", content=png(large)).json()
    assert (said["height"], said["width"]) == (1600, 2400)
    assert said["objects"][0]["area_px"] == 400 * 400
    shown = Image.open(io.BytesIO(client.get(f"/results/{said['key']}/image").content))
    assert shown.size == (2048, 1365)
    assert mask_of(client, said["key"]).shape == (1600, 2400)


def test_what_demo_py_needs_is_named_before_it_loads_a_run(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ValueError, match="no uvicorn.*requirements-extra.txt"):
        demo.main(["--run", str(tmp_path)])
    with pytest.raises(ValueError, match="--max-mb: expected more than 0"):
        demo.main(["--run", str(tmp_path), "--max-mb", "0"])


def test_demo_py_listens_on_this_machine_and_warns_elsewhere(
    untrained_run, photos, monkeypatch, capsys
):
    import uvicorn

    served = []
    monkeypatch.setattr(
        uvicorn.Server, "run", lambda self, sockets: served.append(sockets[0].getsockname())
    )
    call = ["--run", str(untrained_run), "--device", "cpu", "--port", "0"]
    demo.main([*call, "--images", str(photos)])
    printed = capsys.readouterr().out
    assert served[0][0] == "127.0.0.1"
    assert f"http://127.0.0.1:{served[0][1]}/" in printed and "warning" not in printed
    demo.main([*call, "--images", str(photos), "--host", "0.0.0.0"])
    assert "warning: --host 0.0.0.0" in (out := capsys.readouterr().out) and str(photos) in out
    with pytest.raises(ValueError, match="--images: expected a folder"):
        demo.main([*call, "--images", str(photos / "a.png")])


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"127.0.0.1:{port}: expected a free port.*--port"):
            demo.bound("127.0.0.1", port)


def test_the_screenshot_of_the_guide_is_a_picture():
    assert read_image(ROOT / "docs/demo.png").shape[1] >= 1000
