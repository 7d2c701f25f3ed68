"""The workers of a job: those that are there, and those that are on their way in place of lost ones."""

import contextlib
import logging
import threading
from typing import Any

import ray
from ray.exceptions import RayTaskError

from ptm_ray.errors import PtmError, WorkerFailed, first_line
from ptm_ray.orchestrate.workers import LOST, start_workers

#: Attempts at a task whose worker is lost each time.
TRIES = 3
#: Seconds that a job without any worker left waits for one.
WAIT_LIMIT_S = 300.0
#: Seconds that the others have to show that they were lost too: a call on one of a lost node fails within two.
LOOK_LIMIT_S = 5.0
#: Seconds that those who leave have to say that they had come; a busy machine starts a process in five to ten.
START_LIMIT_S = 30.0
#: Seconds without any worker after which it is said that there may be no room.
NOTICE_S = 20.0

log = logging.getLogger(__name__)


def cause_of(error: RayTaskError, doing: str) -> PtmError:
    """What a worker raised while `doing` something: as it was, where it was raised on purpose."""
    return error.cause if isinstance(error.cause, PtmError) else WorkerFailed(f"{doing} failed: {error}")


class Crew:
    """Worker actors that share a problem, until the end of the `with` block.

    A lost one is replaced, but nobody waits for its replacement while others are there: where a node went down with
    it, there may be no room for another.
    """

    def __init__(self, problem_ref: Any, members: list[Any], gpus: float = 0.0) -> None:
        self.problem_ref, self.gpus = problem_ref, gpus
        self.members = list(members)
        # Each one's first answer, which comes when it has started.
        self._answers: dict[Any, Any] = {}
        # Who is on their way, and how often another is sent for where they die on it.
        self._arriving: dict[Any, tuple[Any, int]] = {}
        self._died: Exception | None = None
        self._notice = threading.Timer(NOTICE_S, self._say_if_none_has_come)
        self._notice.daemon = True
        self._expect(self.members)

    @classmethod
    def start(cls, problem_ref: Any, count: int, gpus: float = 0.0) -> "Crew":
        """`count` new workers, with that share of a GPU each. `problem_ref` is a reference to their problem."""
        return cls(problem_ref, start_workers(problem_ref, count, gpus), gpus)

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_: object) -> None:
        self._notice.cancel()
        self.dismiss()

    def recruit(self, count: int) -> None:
        """As many more members at once, for whom there is room."""
        self.members += self._started(count)

    def send_for(self, count: int, tries: int = TRIES) -> None:
        """As many more, who are members once they have come; others for those who die on their way, so many times."""
        self._arriving.update({self._answers[other]: (other, tries - 1) for other in self._started(count)})

    @property
    def arriving(self) -> list[Any]:
        """References to wait for, of workers on their way; `welcome` takes those that are ready."""
        return list(self._arriving)

    def lost(self, member: Any) -> None:
        """This one does not answer any more; others are sent for, in its place and in that of all lost with it.

        A node takes all of its workers along: whoever asked the next of them would lose it too, and give up.
        """
        if member in self.members:
            self._drop(member)
        for arrived in _ready(self.arriving, 0.0):
            self.welcome(arrived)
        asked = {other.process_id.remote(): other for other in self.members}
        # One that is busy answers late, and stays.
        for answer in _ready(list(asked), LOOK_LIMIT_S):
            try:
                ray.get(answer)
            except LOST:
                self._drop(asked[answer])

    def _drop(self, member: Any) -> None:
        self.members.remove(member)
        del self._answers[member]
        with contextlib.suppress(Exception):
            # One that is only out of reach must not go on with work that is given to another.
            ray.kill(member)
        self.send_for(1)

    def welcome(self, arrived: Any) -> Any | None:
        """The worker behind a reference that is ready, now a member; None where it was lost on its way."""
        other, tries = self._arriving.pop(arrived)
        try:
            ray.get(arrived)
        except LOST as error:
            del self._answers[other]
            self._died = error
            if tries:
                self.send_for(1, tries)
            return None
        self.members.append(other)
        return other

    def leader(self) -> Any:
        """Some member; waits for one where all were lost. Raises `WorkerFailed` where none comes."""
        while not self.members:
            ready = _ready(self.arriving, WAIT_LIMIT_S, at_least=1)
            if not ready:
                what = f"none came within {WAIT_LIMIT_S:g} s"
                if self._died and not self.arriving:
                    what = f"those sent for died on their way ({first_line(self._died)})"
                raise WorkerFailed(f"no worker is left, and {what}; run the same command again to go on")
            self.welcome(ready[0])
        return self.members[0]

    def dismiss(self, count: int | None = None) -> None:
        """Ends `count`, those on their way first, who would take a CPU once there is one; or all."""
        leaving = [*(other for other, _ in self._arriving.values()), *self.members][:count]
        self._arriving = {answer: way for answer, way in self._arriving.items() if way[0] not in leaving}
        self.members = [member for member in self.members if member not in leaving]
        answers = {self._answers.pop(member): member for member in leaving}
        # One that is killed between getting its CPU and starting keeps that CPU for good: Ray (2.60) then finds no
        # actor to kill in its process, and a job that wants the CPU waits for ever. Those that have started go first:
        # where a node was lost, another may have waited for a CPU of theirs, and starts now.
        for limit_s in (0.0, START_LIMIT_S):
            for answer in _ready(list(answers), limit_s):
                ray.kill(answers.pop(answer))
        for member in answers.values():
            ray.kill(member)

    def _say_if_none_has_come(self) -> None:
        if not _ready(list(self._answers.values()), 0.0, at_least=1):
            free = ray.available_resources().get("CPU", 0.0)
            log.warning(
                "no worker has started in %g s, %g CPUs are free: other jobs hold the rest, or this machine is slow to "
                "start processes; waiting",
                NOTICE_S,
                free,
            )

    def _started(self, count: int) -> list[Any]:
        workers = start_workers(self.problem_ref, count, self.gpus)
        self._expect(workers)
        return workers

    def _expect(self, workers: list[Any]) -> None:
        self._answers.update({worker: worker.process_id.remote() for worker in workers})
        if workers and self._notice.ident is None:
            self._notice.start()


def _ready(references: list[Any], limit_s: float, at_least: int | None = None) -> list[Any]:
    """Those that are ready, once so many are, or all, or the time is over."""
    if not references:
        return []
    ready: list[Any] = ray.wait(
        references, num_returns=at_least or len(references), timeout=limit_s, fetch_local=False
    )[0]
    return ready
