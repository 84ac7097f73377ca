"""Try a run on a local page: an image in, verdict, class scores, CAMs and mask out.

  python demo.py --run runs/parts
  python demo.py --run runs/parts --images photos/

Open the address that is printed. Drop a picture on the page, or take one of the folder of --images.
Sliders move the threshold and the least area without running the networks again. A wrong mask can
be corrected; the correction is written as a LabelMe file beside the picture of --images, or
downloaded. Mask, JSON and COCO files are those of predict.py.

Needs the packages of requirements-extra.txt. Only this machine reaches the page, but for --host.
Stop it with Ctrl-C.
"""

import argparse
import contextlib
import importlib
import socket
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

from configs.command_line import run_stage
from inference.predictor import load_run
from inference.results import Options


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the page until the program is stopped."""
    args = _parser().parse_args(argv)
    if args.max_mb <= 0:
        raise ValueError(f"--max-mb: expected more than 0, got {args.max_mb:g}.")
    uvicorn = import_uvicorn()
    from demonstration.server import Demonstration, Place  # needs FastAPI

    # The run, with all objects: the sliders decide which are left out.
    run = load_run(args.run, args.device, Options(min_area=0, tile=args.tile))
    images = Path(args.images).expanduser() if args.images else None
    name = Path(args.run).resolve().name
    place = Place(name, images, args.host, round(1e6 * args.max_mb))
    app = Demonstration(run, place).app()

    # The server.
    with bound(args.host, args.port) as opened:
        host = f"[{args.host}]" if ":" in args.host else args.host
        if not is_loopback(args.host):
            print(
                f"warning: --host {args.host}: whoever reaches this machine can use the page"
                + (f" and write annotations to {images}" if images else "")
                + "; there is no password."
            )
        print(f"http://{host}:{opened.getsockname()[1]}/ (stop it with Ctrl-C)", flush=True)
        settings = uvicorn.Config(
            app, log_level="warning", access_log=False, proxy_headers=False, server_header=False
        )
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(settings).run(sockets=[opened])


def import_uvicorn():
    """Return the package uvicorn.

    Raises:
        ValueError: it or FastAPI, which are optional, is not installed.
    """
    try:
        importlib.import_module("fastapi")
        return importlib.import_module("uvicorn")
    except ModuleNotFoundError as error:
        raise ValueError(
            "demo.py: expected the packages fastapi and uvicorn, which are optional, got "
            f"no {error.name}. Run pip install -r requirements-extra.txt."
        ) from error


def bound(host: str, port: int) -> socket.socket:
    """Return a socket that listens there.

    Raises:
        OSError: no such address, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise OSError(
            f"{host}:{port}: expected a free port of this machine, got: {error.strerror}. Give "
            "another --port, or 0 for any."
        ) from error


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches a host."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**16:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--run", required=True, metavar="DIR", help="folder of the run whose models are used")
    add("--images", metavar="DIR", help="folder whose pictures the page lists; corrections are "
        "written beside them")  # fmt: skip
    add("--host", default="127.0.0.1", help="where to listen (default: 127.0.0.1, which only this "
        "machine reaches)")  # fmt: skip
    add("--port", type=_port, default=8000, help="default: 8000; 0 takes any that is free")
    add("--max-mb", type=float, default=50, metavar="MB", help="of an upload (default: 50)")
    add("--tile", type=int, metavar="PX", help="see larger images in tiles of this side; 0 = whole "
        "(default: as configured in training)")  # fmt: skip
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    return parser


if __name__ == "__main__":
    run_stage(main)
