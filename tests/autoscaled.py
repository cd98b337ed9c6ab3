"""A driver on a cluster that grows, in a process of its own: ADDRESS JOB. Prints what it has found as JSON."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from orchestrator.cluster.connect import Session
from orchestrator.cluster.queue import Queue
from orchestrator.errors import CapacityError
from orchestrator.job_file import load_job
from orchestrator.run import refuse_early
from orchestrator.store import Store
from orchestrator.train.driver.waiting import Cluster, find_room

_GONE_WITHIN_S = 90.0


def look(session: Session, job: Path) -> dict[str, Any]:
    """The bounds, what is refused, and a gang that waits, finds room and leaves it."""
    bounds, queue, store = Queue().bounds(), Queue(), Store(Path(tempfile.gettempdir()) / "none")
    found: dict[str, Any] = {
        "bounds": {one.name: [one.node.gpus, one.most] for one in bounds.types} if bounds else None
    }
    try:
        refuse_early(load_job(job, ["train.workers={min: 13, max: 13, gpus: 1}"]), store, session, "train")
    except CapacityError as error:
        found["refused"] = error.message
    found["before"] = gpus(session)
    gang = load_job(job, ["train.workers={min: 4, max: 4, gpus: 1}"])
    refuse_early(gang, store, session, "train")
    cluster = Cluster(session.connect, session.machines, queue)
    with cluster.standing(gang, "gang-0123", begun=False) as turn:
        room = find_room(gang, cluster, turn)
        found["room"] = sorted(node.gpus for node in room.view.nodes if node.gpus)
        found["waiting"] = [[one.name, one.placing] for one in queue.waiting()]
    found["left"] = [one.name for one in queue.waiting()]
    deadline = time.monotonic() + _GONE_WITHIN_S
    while gpus(session) and time.monotonic() < deadline:
        time.sleep(0.5)
    return {**found, "after": gpus(session)}


def gpus(session: Session) -> list[float]:
    """Of each machine that has some."""
    return sorted(node.gpus for node in session.connect().nodes if node.gpus)


if __name__ == "__main__":
    with Session(sys.argv[1]) as joined:
        joined.connect()
        sys.stdout.write(json.dumps(look(joined, Path(sys.argv[2]))))
