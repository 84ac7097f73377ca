"""When a training saves in the middle of an epoch: every ten minutes, and when it is told to end.

Clusters that take a machine back send SIGTERM first: the step is finished, the checkpoint written,
and the call ends. The same command continues with the next step.
"""

import signal
import sys
import time

from execution import ranks

SAVE_EVERY = 600.0  # seconds
ENDED = 128 + signal.SIGTERM  # exit code


class Pauses:
    """Tells when to save, and ends the call if that was asked for."""

    def __init__(self) -> None:
        """Listen to SIGTERM; processes of torchrun do not, as it ends all of them at once."""
        self._last = time.monotonic()
        self._asked = False
        self._before = signal.getsignal(signal.SIGTERM)
        if ranks.size() == 1:
            signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: object) -> None:
        self._asked = True

    def due(self) -> bool:
        """Tell whether to save now; what is the same for all ranks the first one writes."""
        return ranks.is_first() and (self._asked or time.monotonic() > self._last + SAVE_EVERY)

    def saved(self) -> None:
        """Count the next minutes from now, or end the call."""
        self._last = time.monotonic()
        if self._asked:
            self.close()
            print("ended by SIGTERM; the same command with --resume continues", flush=True)
            sys.exit(ENDED)

    def close(self) -> None:
        """Listen no more."""
        signal.signal(signal.SIGTERM, self._before)
