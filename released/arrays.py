"""Files of the authors' released code: pickled dictionaries inside `.npy`, read safely.

Unpickling calls whatever the file names, so nothing of NumPy or of Python is handed to it: the
four names these files use lead to stand-ins that only keep bytes, shape and type, and any other
name is refused before it is looked up. The arrays are built here, from checked values.
Instructions that such files never need are refused before the first one runs.
"""

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format

HIGHEST_CLASS = 253  # mask values are bytes, 0 is background and 255 ignored
MAX_ROUNDING = 1e-4  # how far outside [0, 1] a CAM value may lie before it is refused

# All that dictionaries of arrays take in pickle protocols 0 to 4.
OPCODES = """
    PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT LONG LONG1 BININT BININT1 BININT2
    UNICODE BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES
    EMPTY_DICT DICT SETITEM SETITEMS EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2
    TUPLE3 GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD
"""


def read_released_cam(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the CAMs of one image: a dictionary {class: (H, W) map}.

    Returns:
        Maps (M, H, W) float32 in [0, 1] and their classes (M,) int64, ascending. A file without
        any class gives (0, 0, 0) maps, as it does not say the image's size.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a foreign, truncated or unsafe file, keys that are no class indices, or maps
            that are not finite, not in [0, 1] or not of one size.
    """
    table = _read_table(path, key_type=int, ndim=2, what="{class index: (H, W) map}")
    if not table:
        return np.zeros((0, 0, 0), np.float32), np.zeros(0, np.int64)
    classes = sorted(table)
    if classes[0] < 0 or classes[-1] > HIGHEST_CLASS:
        wrong = classes[0] if classes[0] < 0 else classes[-1]
        raise _unreadable(path, f"class indices from 0 to {HIGHEST_CLASS}", f"class {wrong:.3g}")
    sizes = {table[k].shape for k in classes}
    if len(sizes) > 1:
        raise _unreadable(path, "maps of one size", f"{sorted(sizes)}")
    cam = np.stack([table[k] for k in classes])
    if cam.size == 0 or cam.min() < -MAX_ROUNDING or cam.max() > 1 + MAX_ROUNDING:
        got = f"{cam.min():g}..{cam.max():g}" if cam.size else f"shape {cam.shape}"
        raise _unreadable(path, "CAM values in [0, 1]", got)
    return np.clip(cam, 0, 1), np.array(classes, np.int64)


def read_released_labels(path: Path) -> dict[str, np.ndarray]:
    """Read image labels (`cls_labels*.npy`): a dictionary {image name: (C,) float32}.

    Names come as the file has them, with or without the ending of a picture.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a foreign, truncated or unsafe file, or labels that are not finite or differ
            in length.
    """
    table = _read_table(path, key_type=str, ndim=1, what="{image name: (C,) labels}")
    lengths = sorted({label.size for label in table.values()})
    if len(lengths) > 1:
        raise _unreadable(path, "labels of one length", f"lengths {lengths}")
    return table


def read_released_list(path: Path) -> list[str]:
    """Read a list file: one image name a line, without ending; leading zeros are kept.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no name in it, or a name twice.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a list file with one name a line, found none.")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise _unreadable(path, "one name a line, in UTF-8", str(error)) from error
    names = [line.strip() for line in lines if line.strip()]
    if not names or len(set(names)) < len(names):
        got = f"{len(names)} names, {len(set(names))} of them different"
        raise ValueError(
            f"{path}: expected one name a line, each once, got {got}. Correct the list."
        )
    return names


def _read_table(path: Path, key_type: type, ndim: int, what: str) -> dict[Any, np.ndarray]:
    """Return the dictionary in a file as finite float32 arrays of `ndim` dimensions."""
    content = _unpickle(Path(path))
    if not isinstance(content, dict):
        raise _unreadable(path, what, type(content).__name__)
    table = {}
    for key, value in content.items():
        array = value.value if isinstance(value, _Array) else value
        fits = type(key) is key_type and isinstance(array, np.ndarray) and array.ndim == ndim
        if not fits:
            shape = f" {array.shape}" if isinstance(array, np.ndarray) else ""
            raise _unreadable(path, what, f"{key!r:.40}: {type(array).__name__}{shape}")
        if not np.isfinite(array).all():
            raise _unreadable(path, f"finite numbers for {key!r}", "NaN or infinity")
        table[key] = array.astype(np.float32)
    return table


def _unpickle(path: Path) -> object:
    """Return what the 0-d object array in a `.npy` file holds."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a .npy file, found none.")
    file = io.BytesIO(path.read_bytes())
    try:
        version = npy_format.read_magic(file)
        read_header = {
            (1, 0): npy_format.read_array_header_1_0,
            (2, 0): npy_format.read_array_header_2_0,
        }[version]
        shape, _, dtype = read_header(file)
    except Exception as error:  # NumPy lets its tokenizer's and parser's errors through
        raise _unreadable(path, "a .npy file", str(error)) from error
    if shape != () or dtype != np.dtype(object):
        raise _unreadable(path, "a pickled dictionary", f"an array {shape} of {dtype}")
    try:
        _check_opcodes(file.getvalue()[file.tell() :])
        array = _Unpickler(file).load()
    except _RefusedGlobalError as error:
        raise ValueError(
            f"{path}: expected arrays only, got the global {str(error)!r}, which could run code. "
            "Do not open this file elsewhere unless you trust its author."
        ) from error
    except Exception as error:  # pickle documents no closed list for damaged input
        raise _unreadable(
            path, "a whole pickle of protocol 0 to 4", f"{type(error).__name__} {error}"
        ) from error
    return array.value if isinstance(array, _Array) else array


def _check_opcodes(stream: bytes) -> None:
    """Refuse unneeded instructions, lengths past the end, and memo places that fill the memory."""
    allowed = frozenset(OPCODES.split())
    for opcode, argument, _ in pickletools.genops(stream):
        places_memo = opcode.name in ("PUT", "BINPUT", "LONG_BINPUT")
        if opcode.name not in allowed or (places_memo and argument > len(stream)):
            raise ValueError(f"instruction {opcode.name}")


def _unreadable(path: Path, expected: str, got: str) -> ValueError:
    got = " ".join(got.split())
    return ValueError(f"{path}: expected {expected}, got: {got}. Replace or remove the file.")


class _RefusedGlobalError(Exception):
    pass


class _Array:
    """Takes the state of a pickled ndarray; `value` is an ndarray, or the object of a 0-d one."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: object = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, column_major, data = state
        if dtype.code in ("O", "O8", "O4"):
            if shape != () or type(data) is not list or len(data) != 1:
                raise ValueError(f"an object array of shape {shape}")
            self.value = data[0]
        else:
            values = np.frombuffer(data, np.dtype(dtype.byte_order + dtype.code))
            self.value = values.reshape(shape, order="F" if column_major else "C")


class _Dtype:
    """Takes the code (f4, i8, ..., O) and the byte order of a pickled dtype."""

    __slots__ = ("byte_order", "code")

    def __init__(self, code: str) -> None:
        simple = len(code) == 2 and code[0] in "biuf" and code[1] in "1248"
        if not simple and code not in ("O", "O8", "O4"):
            raise ValueError(f"arrays of type {code!r}")
        self.code = code
        self.byte_order = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise ValueError(f"byte order {state[1]!r}")
        self.byte_order = state[1]


# Objects without attributes rather than functions or classes: a pickle can set the attributes of
# what it is given and call __new__ of a class.
class _Reconstruct:
    __slots__ = ()

    def __call__(self, *_: object) -> _Array:
        return _Array()


class _MakeDtype:
    __slots__ = ()

    def __call__(self, code: str, *_: object) -> _Dtype:
        return _Dtype(code)


class _ArrayClass:
    __slots__ = ()


class _Encode:
    """Bytes as pickle protocol 2 writes them: a string whose characters are the bytes."""

    __slots__ = ()

    def __call__(self, text: str, *_: object) -> bytes:
        return text.encode("latin1")


_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy", "ndarray"): _ArrayClass,
    ("numpy", "dtype"): _MakeDtype,
    ("_codecs", "encode"): _Encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _ALLOWED:
            raise _RefusedGlobalError(f"{module}.{name}")
        return _ALLOWED[module, name]()
