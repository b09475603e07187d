"""Four processes write runs into one store, and are killed -9 while they do. Run by test_store_merge.py:

python store_killing.py STORE KILLS SEED
"""

import os
import random
import signal
import sys
import time
from dataclasses import replace
from itertools import count
from pathlib import Path

from rankwise.experiments.records import RunRecord
from rankwise.experiments.store import Store
from rankwise.tasks.base import MetricValue

PROCESSES = 4
STEPS, MODULES, EXAMPLES = 20, 30, 400


def record_of(number):
    record = RunRecord(f"run-{number:05}", "lora", "task", "model", number, "r=4", config={"number": number})
    return replace(record, metrics={name: MetricValue(number / 3, 0.1, EXAMPLES) for name in ("accuracy", "f1")})


def steps_of(number):
    return [(step, "train_loss", number + step / 64) for step in range(1, STEPS + 1)]


def ranks_of(number):
    return {f"layer.{module}": (number + module) % 9 for module in range(MODULES)}


def predictions_of(number):
    return [(number + example) % 7 for example in range(EXAMPLES)], [example % 7 for example in range(EXAMPLES)]


def write(store, number):
    """One run, in as many transactions as a real one."""
    record = record_of(number)
    store.begin(replace(record, metrics={}))
    rows = steps_of(number)
    store.add_steps(record.run_id, rows[: STEPS // 2])
    store.add_ranks(record.run_id, 0, "start", ranks_of(number), {})
    store.add_steps(record.run_id, rows[STEPS // 2 :])
    store.add_predictions(record.run_id, "validation", *predictions_of(number))
    store.finish(record)


def work(path, first):
    """A process: every fourth run that is not completed, and a line in a file for each that the store says is."""
    enough = Path(f"{path}.enough")
    with Store(path) as store, open(f"{path}.said", "a", buffering=1) as said:
        done = store.completed()
        for number in count(first, PROCESSES):
            if enough.exists() and number >= int(enough.read_text()):
                return
            if record_of(number).run_id not in done:
                write(store, number)
                said.write(f"{number}\n")


def begin(path, first):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work(path, first)
            code = 0
        finally:
            os._exit(code)
    return pid


def main(path, kills, seed):
    draw = random.Random(seed)
    store = Store(path)
    store.close()
    at_work = [begin(path, first) for first in range(PROCESSES)]
    for _ in range(kills):
        time.sleep(draw.uniform(0.005, 0.06))
        which = draw.randrange(PROCESSES)
        os.kill(at_work[which], signal.SIGKILL)
        _, status = os.waitpid(at_work[which], 0)
        assert os.WIFSIGNALED(status), status
        at_work[which] = begin(path, which)
    with Store(path) as store:
        runs = max(record.seed for record in store.runs()) + PROCESSES  # nothing half-written lies beyond
    Path(f"{path}.new").write_text(str(runs))
    Path(f"{path}.new").rename(f"{path}.enough")
    for pid in at_work:  # the rest, undisturbed
        _, status = os.waitpid(pid, 0)
        assert status == 0, status
    print(runs)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
