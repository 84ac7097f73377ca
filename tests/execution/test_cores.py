"""Work divided among processes: order, errors and ends."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from configs.command_line import ROOT
from execution import cores
from execution.cores import on_cores


def test_results_come_in_the_order_of_the_items():
    items = [f"item {number}" for number in range(50)]
    results = list(on_cores(lambda item: (item.upper(), os.getpid()), items, 2))
    assert [name for name, _ in results] == [item.upper() for item in items]
    used = {process for _, process in results}
    assert os.getpid() not in used


@pytest.mark.parametrize(("processes", "count"), [(1, 50), (2, cores.FEW - 1)])
def test_one_process_or_few_items_are_done_here(processes, count):
    assert set(on_cores(lambda _: os.getpid(), range(count), processes)) == {os.getpid()}


def test_processes_work_with_opencv_though_its_threads_are_there():
    picture = np.random.default_rng(0).random((2000, 2000), np.float32)
    cv2.GaussianBlur(picture, (0, 0), 9)  # starts them
    before = cv2.getNumThreads()
    blurred = on_cores(lambda i: cv2.GaussianBlur(picture * i, (0, 0), 9).mean(), range(10), 2)
    assert len(list(blurred)) == 10
    assert cv2.getNumThreads() == before


def test_each_process_has_one_thread():
    torch = pytest.importorskip("torch")
    assert set(on_cores(lambda _: torch.get_num_threads(), range(10), 2)) == {1}


def test_no_more_is_begun_than_a_few_items_ahead(tmp_path):
    results = on_cores(lambda i: (tmp_path / str(i)).touch() or i, range(1000), 2)
    assert next(results) == 0
    results.close()
    assert len(list(tmp_path.iterdir())) <= 2 * 2 * cores.AHEAD


def test_an_error_keeps_its_type_and_text_and_ends_the_processes():
    def work(number: int) -> int:
        if number == 20:
            raise FileNotFoundError("map 20: expected a file, got none.")
        return number

    before = threading.active_count()
    with pytest.raises(FileNotFoundError, match=r"^map 20: expected a file, got none\.$"):
        list(on_cores(work, range(1000), 2))
    assert threading.active_count() == before


def test_a_killed_process_ends_the_call_with_one_line():
    def work(number: int) -> int:
        if number == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    with pytest.raises(RuntimeError, match="^a process of this call was ended from outside"):
        list(on_cores(work, range(100), 2))


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl and /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_the_call(how):
    script = """
        import os, signal, time
        from execution.cores import on_cores
        signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
        def work(i):
            os.write(1, b"%d\\n" % os.getpid())
            time.sleep(0.2)
        list(on_cores(work, range(1000), 2))
    """
    words = [sys.executable, "-c", textwrap.dedent(script)]
    call = subprocess.Popen(
        words, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    children = {int(call.stdout.readline()) for _ in range(6)}
    call.send_signal(how)
    _, errors = call.communicate(timeout=30)
    assert call.returncode == (-signal.SIGKILL if how is signal.SIGKILL else -signal.SIGINT)
    assert errors.count("Traceback") <= 1  # the call's own
    for _ in range(100):
        left = [child for child in children if _is_at_work(child)]
        if not left:
            break
        time.sleep(0.1)
    assert not left


def _is_at_work(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
