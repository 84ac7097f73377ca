"""The page as a FastAPI app: routes, what is kept between them, and errors of one line."""

import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from urllib.parse import quote

import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from datasets.decoding import colour_of
from datasets.files import in_colour, list_images, mask_png, read_image, write_json
from datasets.record import Record
from demonstration.corrections import Correction, labelme_of, mask_of
from demonstration.guard import Guard
from demonstration.kept import Kept, shown_of
from demonstration.views import MOST_OBJECTS, View, coco_of, layer_of, result_of, state_of
from inference.images import Picture
from inference.predictor import Predictor
from inference.results import Result
from reporting.page import environment
from reporting.pictures import IMAGE_MIME, SOFT_MIME, class_colours

AnyView = Annotated[View, Query()]  # of the address
TEXTS = {  # address: files of reporting/templates, type
    "/demo.css": (("style.css", "demo.css"), "text/css"),
    "/demo.js": (("demo.js",), "text/javascript"),
    "/stage.js": (("stage.js",), "text/javascript"),
}
STATUS = {
    FileExistsError: 409,
    FileNotFoundError: 404,
    OSError: 500,
    RuntimeError: 500,  # of PyTorch, such as a full GPU
    MemoryError: 500,
    ValueError: 400,
}


class Place(NamedTuple):
    """What the page is told at its start.

    Attributes:
        run: name of the run.
        images: folder whose pictures are listed, and beside which corrections are written.
        host: under which the page is reached.
        max_bytes: of an upload.
    """

    run: str
    images: Path | None
    host: str
    max_bytes: int


class Demonstration:
    """A run behind a page."""

    def __init__(self, run: Predictor, place: Place):
        """Look for the pictures of the folder.

        Raises:
            FileNotFoundError: the folder has none.
            ValueError: it is no folder.
        """
        self.run, self.place = run, place
        self._kept = Kept()
        self._one_at_a_time = threading.Lock()  # images in the networks, for their memory
        self._pictures: dict[str, Path] = {}
        if place.images is not None:
            if not place.images.is_dir():
                raise ValueError(f"--images: expected a folder, got {place.images}.")
            self.pictures()

    def app(self) -> FastAPI:
        """Return what a server serves."""
        handlers: dict[Any, Callable] = dict.fromkeys(STATUS, _failed)
        handlers |= {HTTPException: _refused, RequestValidationError: _misunderstood}
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, exception_handlers=handlers)
        names = {"localhost", self.place.host.lower(), socket.gethostname().lower()}
        app.add_middleware(Guard, names=names, max_bytes=self.place.max_bytes)
        add = app.add_api_route
        texts = {path: _text(files, kind) for path, (files, kind) in TEXTS.items()}
        texts["/"] = Response(self._page(), media_type="text/html")
        for path, response in texts.items():
            add(path, _always(response), methods=["GET"])
        add("/pictures", self.pictures, methods=["GET"])
        add("/pictures/{name:path}", self.open_picture, methods=["POST"])
        add("/uploads", self.open_upload, methods=["POST"])
        add("/results/{key}", self.state, methods=["GET"])
        add("/results/{key}/image", self.picture, methods=["GET"])
        add("/results/{key}/cam", self.cam, methods=["GET"])
        add("/results/{key}/mask.png", self.mask, methods=["GET"])
        add("/results/{key}/result.json", self.result, methods=["GET"])
        add("/results/{key}/coco.json", self.coco, methods=["GET"])
        add("/results/{key}/correction", self.correct, methods=["POST"])
        return app

    def pictures(self) -> dict[str, Any]:
        """List the pictures of the folder, and whether each has an annotation beside it."""
        folder = self.place.images
        found = [] if folder is None else list_images(str(folder))
        named = {relative.as_posix(): path for path, relative in found}
        self._pictures = {name: path for name, path in named.items() if name.isprintable()}
        return {
            "pictures": [
                {"name": name, "annotated": _annotation(path).is_file()}
                for name, path in self._pictures.items()
            ],
            "left_out": len(named) - len(self._pictures),
        }

    def open_picture(self, name: str) -> dict[str, Any]:
        """Pass a picture of the folder through the networks."""
        path = self._pictures.get(name)  # nothing but what was listed
        if path is None:
            raise FileNotFoundError(f"{name!r:.300}: expected a picture of the list, got another.")
        return self._opened(Record(path.stem, path, ()), read_image(path), path)

    async def open_upload(self, request: Request, name: str) -> dict[str, Any]:
        """Pass the picture that is the body through the networks."""
        data = await request.body()
        path = Path(Path(name).name)  # names downloads; nothing is written under it
        record = Record(path.stem, path, ())

        def opened() -> dict[str, Any]:
            return self._opened(record, in_colour(colour_of(data, path), path), None)

        return await run_in_threadpool(opened)

    def state(self, key: str, view: AnyView) -> dict[str, Any]:
        """Tell what the page shows of a result."""
        return state_of(self.run, self._kept[key], view)

    def picture(self, key: str) -> Response:
        """Give the image, for the page."""
        return Response(self._kept[key].picture, media_type=IMAGE_MIME)

    def cam(self, key: str) -> Response:
        """Give the layer of the CAMs."""
        cam = self._kept[key].cam
        if cam is None:
            raise FileNotFoundError("CAM: expected a run with a localiser, got one without.")
        return Response(cam, media_type=SOFT_MIME)

    def mask(self, key: str, view: AnyView) -> Response:
        """Give the mask as predict.py writes it."""
        result = self._result(key, view)
        return _download(mask_png(result.mask), result, "_mask.png", "image/png")

    def result(self, key: str, view: AnyView) -> Response:
        """Give the JSON file as predict.py writes it."""
        result = self._result(key, view)
        return _download(_json(result.page(self.run.limits)), result, ".json", "application/json")

    def coco(self, key: str, view: AnyView) -> Response:
        """Give a COCO file of the image."""
        result = self._result(key, view)
        return _download(_json(coco_of(self.run, result)), result, "_coco.json", "application/json")

    def correct(self, key: str, correction: Correction) -> dict[str, Any]:
        """Write a correction beside its image, or give it back where the image has no folder."""
        shown, names = self._kept[key], self.run.class_names
        content = labelme_of(correction, self._result(key, correction.view))
        mask = mask_of(content, shown.size, names)
        file = ""
        if shown.source is not None:
            path = _annotation(shown.source)
            if path.exists() and not correction.replace:
                raise FileExistsError(
                    f"{path.name}: expected no such file, got one. Save again to replace it."
                )
            write_json(path, content)
            file = path.name
        return {"file": file, "content": content, "mask": layer_of(mask, len(names))}

    def _opened(self, record: Record, pixels: np.ndarray, source: Path | None) -> dict[str, Any]:
        with self._one_at_a_time:
            (seen,) = self.run.seen([Picture(record, pixels)])
            shown = shown_of(self.run, seen, source)
        return {"key": self._kept.add(shown)} | state_of(self.run, shown, View())

    def _result(self, key: str, view: View) -> Result:
        return result_of(self.run, self._kept[key], view)

    def _page(self) -> str:
        names, alone = self.run.class_names, self.run.thresholds
        facts = {
            "classes": [
                {"name": name, "colour": colour}
                for name, colour in zip(names, class_colours(len(names)), strict=True)
            ],
            "max_bytes": self.place.max_bytes,
            "most_objects": MOST_OBJECTS,
            "start": max(alone, default=0.5),  # of the slider
            "kept": ", ".join(f"{n} {t:.2f}" for n, t in zip(names, alone, strict=False)),
        }
        page = environment().get_template("demo.html.j2")
        return page.render(facts=facts, place=self.place, alone=bool(alone))


def _annotation(path: Path) -> Path:
    """Return where datasets/layouts look for the annotation of a picture."""
    return path.with_suffix(".json")


def _text(files: tuple[str, ...], kind: str) -> Response:
    loader = environment().loader
    parts = [loader.get_source(environment(), file)[0] for file in files]
    return Response("\n".join(parts), media_type=kind)


def _always(response: Response) -> Callable[[], Response]:
    return lambda: response


def _json(content: Any) -> bytes:
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False).encode()


def _download(content: bytes, result: Result, ending: str, kind: str) -> Response:
    name = quote(result.record.name + ending, safe="")
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{name}"}
    return Response(content, media_type=kind, headers=headers)


def _failed(request: Request, error: Exception) -> JSONResponse:
    status = next(status for kind, status in STATUS.items() if isinstance(error, kind))
    return _error(str(error) or "expected more memory for this image, got too little.", status)


def _refused(request: Request, error: HTTPException) -> JSONResponse:
    return _error(str(error.detail), error.status_code)


def _misunderstood(request: Request, error: RequestValidationError) -> JSONResponse:
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"])
    return _error(f"{where}: {fault['msg']}. Load the page again.", 422)


def _error(text: str, status: int) -> JSONResponse:
    return JSONResponse({"error": " ".join(text.split())}, status)
