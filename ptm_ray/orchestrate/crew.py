"""The workers of a job: those that are there, and those that are on their way in place of lost ones."""

import contextlib
from typing import Any

import ray
from ray.exceptions import RayTaskError

from ptm_ray.errors import PtmError, WorkerFailed
from ptm_ray.orchestrate.workers import LOST, start_workers

#: What a worker was lost over is tried this often.
TRIES = 3
#: Seconds that a job without any worker left waits for one.
WAIT_LIMIT_S = 300.0
#: Seconds that those who leave have to say that they had come; a busy machine starts a process in five to ten.
START_LIMIT_S = 30.0


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
        self._answers = {member: member.process_id.remote() for member in members}
        self._arriving: dict[Any, Any] = {}

    @classmethod
    def start(cls, problem_ref: Any, count: int, gpus: float = 0.0) -> "Crew":
        """`count` new workers, with that share of a GPU each. `problem_ref` is a reference to their problem."""
        return cls(problem_ref, start_workers(problem_ref, count, gpus), gpus)

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_: object) -> None:
        self.dismiss()

    def recruit(self, count: int) -> None:
        """As many more."""
        self.members += self._sent_for(count)

    @property
    def arriving(self) -> list[Any]:
        """References to wait for, of workers on their way; `welcome` takes those that are ready."""
        return list(self._arriving)

    def lost(self, member: Any) -> None:
        """This one does not answer any more; another one is sent for."""
        self.members.remove(member)
        del self._answers[member]
        with contextlib.suppress(Exception):
            # One that is only out of reach must not go on with work that is given to another.
            ray.kill(member)
        (other,) = self._sent_for(1)
        self._arriving[self._answers[other]] = other

    def welcome(self, arrived: Any) -> Any | None:
        """The worker behind a reference that is ready, now a member; None where it was lost on its way."""
        other = self._arriving.pop(arrived)
        try:
            ray.get(arrived)
        except LOST:
            del self._answers[other]
            return None
        self.members.append(other)
        return other

    def leader(self) -> Any:
        """Some member; waits for one where all were lost. Raises `WorkerFailed` where none comes."""
        while not self.members:
            ready, _ = ray.wait(self.arriving, num_returns=1, timeout=WAIT_LIMIT_S) if self._arriving else ([], [])
            if not ready:
                raise WorkerFailed(
                    f"all workers were lost, and none came in their place within {WAIT_LIMIT_S:g} s; run the same "
                    "command again to go on"
                )
            self.welcome(ready[0])
        return self.members[0]

    def dismiss(self, count: int | None = None) -> None:
        """Ends `count` members, or all and those on their way."""
        leaving = self.members[:count]
        self.members = self.members[len(leaving) :]
        if count is None:
            leaving += self._arriving.values()
            self._arriving = {}
        answers = {self._answers.pop(member): member for member in leaving}
        # One that is killed between getting its CPU and starting keeps that CPU for good: Ray (2.60) then finds no
        # actor to kill in its process, and a job that wants the CPU waits for ever. Those that have started go first:
        # where a node was lost, another may have waited for a CPU of theirs, and starts now.
        for limit_s in (0.0, START_LIMIT_S):
            if answers:
                started, _ = ray.wait(list(answers), num_returns=len(answers), timeout=limit_s, fetch_local=False)
                for answer in started:
                    ray.kill(answers.pop(answer))
        for member in answers.values():
            ray.kill(member)

    def _sent_for(self, count: int) -> list[Any]:
        workers = start_workers(self.problem_ref, count, self.gpus)
        self._answers.update({worker: worker.process_id.remote() for worker in workers})
        return workers
