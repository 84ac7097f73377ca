"""Runs stages in one process group, each a module with its flags, parted by --:

    torchrun --nproc-per-node 2 tests/execution/stages.py train_stac --out a -- make_cams --out a

Nothing random happens within a network: batch statistics are frozen and nothing is dropped, as
ranks see other batches and draw other numbers than one process does. The second rank is killed once
the file is there that KILL_RANK_1_AFTER names.
"""

import importlib
import os
import signal
import sys
import time
from functools import partial
from itertools import groupby
from pathlib import Path
from threading import Thread

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

sys.path.insert(0, str(Path(__file__).parents[2]))
from configs.command_line import run_stage


def stay_in_evaluation(self: nn.Module, mode: bool = True) -> nn.Module:
    return nn.Module.train(self, mode=False)


def die_after(path: Path) -> None:
    while not path.exists():
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)


def main(argv: object) -> None:
    if os.environ.get("RANK") == "1" and (path := os.environ.get("KILL_RANK_1_AFTER")):
        Thread(target=die_after, args=[Path(path)], daemon=True).start()
    _BatchNorm.train = _DropoutNd.train = stay_in_evaluation
    # Adam divides by the size of a gradient; of one that is rounding alone (the bias of keys) it
    # would make a step of full length.
    torch.optim.AdamW = partial(torch.optim.AdamW, eps=1e-3)
    for is_end, words in groupby(sys.argv[1:], lambda word: word == "--"):
        if not is_end:
            name, *flags = words
            importlib.import_module(name).main(flags)


run_stage(main)
