"""Which outer step's set is kept: candidates go to a scorer, the best on the validation split stays."""

from dataclasses import asdict, dataclass
from typing import Any

from ptm_ray.core.synthetic import Synthetic
from ptm_ray.stages.scoring import Scorer


@dataclass(frozen=True)
class Candidate:
    """A set that was scored: its number, its outer step, its validation score, and what it learned."""

    tag: int
    outer_step: int
    score: float
    learned: dict[str, Any]


class Selection:
    """Hands candidates to the scorer, which may answer later, and remembers the best that came back."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._waiting: dict[int, tuple[int, dict[str, Any]]] = {}
        self._submitted = 0
        self.best: Candidate | None = None
        self.scores: list[tuple[int, float]] = []

    def submit(self, outer_step: int, candidate: Synthetic) -> int:
        """Hands a candidate over and takes in whatever is scored by now. Returns the candidate's number."""
        tag = self._submitted
        self._submitted += 1
        learned = {
            "images": candidate.images,
            "log_lr": candidate.log_lr,
            "label_logits": candidate.label_logits,
        }
        self._waiting[tag] = (outer_step, learned)
        self._scorer.submit(tag, candidate)
        return tag

    def collect(self, *, wait: bool) -> dict[int, float]:
        """Scores that have arrived since the last call, by candidate; all of them where told to wait."""
        scored = dict(self._scorer.collect(wait))
        for tag, score in sorted(scored.items()):
            outer_step, learned = self._waiting.pop(tag)
            self.scores.append((outer_step, score))
            # Of equals the later one: it has learned more that validation could not tell apart.
            if self.best is None or (score, tag) >= (self.best.score, self.best.tag):
                self.best = Candidate(tag, outer_step, score, learned)
        return scored

    def score_now(self, outer_step: int, candidate: Synthetic) -> float:
        """Submits a candidate and waits for its score."""
        tag = self.submit(outer_step, candidate)
        return self.collect(wait=True)[tag]

    def state_dict(self) -> dict[str, Any]:
        """Everything but what still waits: collect first."""
        return {
            "best": None if self.best is None else asdict(self.best),
            "scores": list(self.scores),
            "submitted": self._submitted,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Back to a saved state."""
        self.best = None if state["best"] is None else Candidate(**state["best"])
        self.scores = [(step, score) for step, score in state["scores"]]
        self._submitted = state["submitted"]
