"""Give each reader thousands of damaged files; what comes out is counted.

  python tests/fuzz --inputs 10000

A worker reads changed copies of real files, one after the other: clean (an error of one line that
names the file), accepted, traceback (any other error), crash (the worker died), hang (longer than
five seconds), nonsense (accepted, but what was read makes no sense) and memory (more than 2 GB).
Inputs that are neither clean nor accepted are kept. The exit code is 1 if there are any.
"""

import argparse
import multiprocessing
import random
import resource
import sys
from collections import Counter
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))

from readers import Reader, prepare, readers

OUTCOMES = ("clean", "accepted", "traceback", "crash", "hang", "nonsense", "memory")
SECONDS = 5.0
MEMORY = 2 * 1024**2  # KiB of resident memory
VALUES = (0, 1, 0x7F, 0x80, 0xFF)
WORDS = (
    b"NaN", b"Infinity", b"-1", b"1e308", b"null", b"[]", b"{}", b'""', b"\x00", b"\xff\xfe", b"\n",
    b"99999999999999999999", b"../../x", b"<", b"&amp;", b",", b"true", b"[[[[[[[[",
    b"\xed\xa0\x80",
)  # fmt: skip


def changed(rng: random.Random, content: bytes) -> bytes:
    """Return a damaged copy: bits, bytes, words, parts left out, doubled or cut off."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(len(data) + 1)
        length = rng.choice((1, 2, 4, 8, 64, 512))
        match rng.randrange(8):
            case 0:
                del data[at:]
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = data[at : at + length]
            case 3:
                data[at:at] = rng.choice(WORDS)
            case 4:
                word = rng.choice(WORDS)
                data[at : at + len(word)] = word
            case 5:
                data[at : at + length] = bytes([rng.choice(VALUES)]) * length
            case 6:
                data[at : at + length] = rng.randbytes(length)
            case _:
                if at < len(data):
                    data[at] ^= 1 << rng.randrange(8)
    return bytes(data)


def hostile(rng: random.Random) -> Any:
    """Return a value that nobody expects."""
    numbers = (0, -1, 10**30, 2**31, 1e308, -1e308, float("nan"), float("inf"), 0.5, 255, 3)
    others = (None, True, "", "x", "../x", "a\nb", "\x00", [], {}, [[]], [None], "9" * 5000, b"x")
    arrays = (
        lambda: np.full((3, 4), np.nan, np.float32),
        lambda: np.zeros((0, 3), np.float32),
        lambda: np.array(["a", "b"]),
        lambda: np.array(7),
        lambda: np.array([-1, 10**12]),
        lambda: torch.full((2, 2), float("inf")),
        lambda: torch.zeros(0),
    )
    kind = rng.randrange(3)
    return rng.choice(arrays)() if kind == 2 else rng.choice((numbers, others)[kind])


def twisted(rng: random.Random, content: Any) -> Any:
    """Return nested values with one of them replaced, left out, doubled or under another key."""
    inner = isinstance(content, dict | list) and len(content) and rng.random() < 0.85
    if not inner:
        return hostile(rng)
    copy = content.copy()
    key = rng.choice(list(copy)) if isinstance(copy, dict) else rng.randrange(len(copy))
    match rng.randrange(8):
        case 0:
            del copy[key]
        case 1 if isinstance(copy, dict):
            copy[rng.choice(("x", 3, -1, 10**30, "../x"))] = copy.pop(key)
        case 1:
            copy.insert(key, copy[key])
        case _:
            copy[key] = twisted(rng, copy[key])
    return copy


def damaged(rng: random.Random, reader: Reader) -> bytes:
    """Return a damaged file: changed bytes, or, in half of those that can be, wrong values."""
    if reader.content and rng.random() < 0.5:
        content, write = reader.content
        for _ in range(20):  # not all values can be written
            with suppress(Exception):
                return write(twisted(rng, content))
    return changed(rng, rng.choice(reader.seeds))


def outcome(reader: Reader, path: Path) -> str:
    """Read a file and say what came out."""
    try:
        found = reader.read(path)
    except (ValueError, OSError) as error:
        text = str(error)
        return "clean" if path.name in text and "\n" not in text else f"traceback {error!r}"
    except Exception as error:
        return f"traceback {error!r}"
    return "accepted" if reader.holds(found) else "nonsense"


def work(connection: Connection, reader: Reader, folder: Path) -> None:
    """Read what is asked for, until nothing is."""
    sys.stderr = Path("/dev/null").open("w")  # noqa: SIM115
    prepare(folder)
    path = folder / reader.path
    while (content := connection.recv()) is not None:
        path.write_bytes(content)
        said = outcome(reader, path)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        connection.send("memory" if peak > MEMORY else said)


def fuzz(name: str, reader: Reader, count: int, seed: int, kept: Path) -> Counter:
    """Count the outcomes of a reader; bad inputs are written to a folder."""
    counts: Counter = Counter()
    context = multiprocessing.get_context("fork")
    worker = connection = None
    rng = random.Random(f"{name} {seed}")
    with TemporaryDirectory() as folder:
        for number in range(count):
            if worker is None:
                connection, other = context.Pipe()
                worker = context.Process(target=work, args=(other, reader, Path(folder)))
                worker.start()
                other.close()
            content = damaged(rng, reader)
            connection.send(content)
            try:
                said = connection.recv() if connection.poll(SECONDS) else "hang"
            except EOFError:
                said = "crash"
            kind = said.split()[0]
            counts[kind] += 1
            if kind not in ("clean", "accepted"):
                kept.mkdir(parents=True, exist_ok=True)
                (kept / f"{name} {number}".replace(" ", "_")).write_bytes(content)
                print(f"{name}, input {number}: {said}", flush=True)
            if kind in ("crash", "hang", "memory"):
                worker.kill()
                worker.join()
                worker = None
        if worker is not None:
            connection.send(None)
            worker.join()
    return counts


def first_outcome(reader: Reader, content: bytes) -> str:
    """Return what is wrong with a real file, which is nothing."""
    with TemporaryDirectory() as folder:
        prepare(Path(folder))
        path = Path(folder, reader.path)
        path.write_bytes(content)
        said = outcome(reader, path)
        return "" if said == "accepted" else said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000, help="of each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz_inputs"), metavar="DIR")
    parser.add_argument("--only", nargs="+", metavar="READER")
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        table = readers(Path(folder))
    print(f"| reader | {' | '.join(OUTCOMES)} |", "|---" * (len(OUTCOMES) + 1) + "|", sep="\n")
    bad = 0
    for name, reader in table.items():
        refused = [said for content in reader.seeds if (said := first_outcome(reader, content))]
        if refused:
            sys.exit(f"{name}: expected that its real files are accepted, got {refused[0]}")
    for name in args.only or table:
        counts = fuzz(name, table[name], args.inputs, args.seed, args.keep)
        print(f"| {name} | {' | '.join(str(counts[kind]) for kind in OUTCOMES)} |", flush=True)
        bad += args.inputs - counts["clean"] - counts["accepted"]
    sys.exit(int(bad > 0))


if __name__ == "__main__":
    main()
