"""Work divided among processes: order, errors and ends."""

import os
import signal
import threading

import cv2
import numpy as np
import pytest

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
