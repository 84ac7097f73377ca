"""What the readers of annotation files share: JSON, schemas, and which entry is of which picture.

datasets.outlines reads LabelMe and COCO files, datasets.label_studio those of Label Studio.
"""

import json
import posixpath
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from datasets.areas import Size

Side = Annotated[int, Field(ge=1)]
Schema = TypeVar("Schema", bound=BaseModel)


class PathEnds:
    """Entries of annotation files, by how the paths of their pictures end."""

    def __init__(self, paths: Iterable[str]):
        """Index the paths as files give them; the number of a path is its place among them."""
        self.paths = list(paths)
        self._numbers: dict[str, list[tuple[tuple[str, ...], int]]] = defaultdict(list)
        for number, path in enumerate(self.paths):
            parts = _parts(path)
            self._numbers[parts[-1]].append((parts, number))

    def number_of(self, picture: Path) -> int | None:
        """Return the number of the path that ends the picture's, the longest, the last; or None."""
        listed = self._numbers.get(picture.name, ())
        whole = {picture.absolute().parts, picture.resolve().parts} if listed else ()
        ends = [
            (len(parts), number)
            for parts, number in listed
            if any(parts == of_picture[-len(parts) :] for of_picture in whole)
        ]
        return max(ends)[1] if ends else None

    def known(self, picture: Path) -> int:
        """Return the number of a picture.

        Raises:
            ValueError: "<expected>, got <got>", it is not listed.
        """
        number = self.number_of(picture)
        if number is None:
            raise ValueError(f"an entry of {picture.name}, got none")
        return number


def _parts(path: str) -> tuple[str, ...]:
    """Return the parts of a path of any system, without root and what leads upwards."""
    parts = posixpath.normpath(path.replace("\\", "/")).split("/")
    return tuple(part for part in parts if part not in ("", "..", ".")) or ("",)


def check_size(said: Size, size: Size) -> None:
    """Refuse an annotation of a picture of another size with a ValueError."""
    if said != size:
        raise ValueError(f"the size of the picture, {size}, got {said}")


def checked(schema: type[Schema], content: Any, what: str) -> Schema:
    """Return content as a schema says it.

    Raises:
        ValueError: "<what>, got ..." of the first fault.
    """
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"]))
        got = "" if fault["type"] == "missing" else f": {fault['input']!r:.40}"
        raise ValueError(f"{what}, got at {where}{got} ({fault['msg']})") from error


def read_json(path: Path) -> Any:
    """Read an annotation file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: expected an annotation file, found none.") from error
    except (ValueError, RecursionError) as error:  # of JSON, of UTF-8, of numbers of 4,300 digits
        raise ValueError(f"{path}: expected JSON, got: {error}. Export it again.") from error
