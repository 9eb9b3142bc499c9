"""The training command under torchrun, one process of which is killed without warning in the first attempt."""

import os
import signal
import sys

from process_pair import make_quick

from ard_fast.train import main
from ard_fast.training.trainer import Progress

if __name__ == "__main__":
    make_quick()
    real, done = Progress.step, 0

    def step(self):
        global done
        done += 1
        if done == 5 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        real(self)

    Progress.step = step
    sys.exit(main())
