"""Checkpoints of a distillation, and the folder of a run."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from ptm_ray.errors import StoreError
from ptm_ray.store import atomic
from ptm_ray.store.places import Place


class RunFolder:
    """The folder of one run: its settings, checkpoint, history and set. Belongs to one run for good.

    What lies elsewhere is worked on in the copy at `root`: `claim` and `load_checkpoint` bring here what a run goes on
    from, `save_checkpoint` and `publish` carry over what it made.
    """

    def __init__(self, root: str | Path | Place) -> None:
        self.place = Place.of(root)
        self.root = self.place.local

    @property
    def set_path(self) -> Path:
        return self.root / "set"

    @property
    def set_place(self) -> Place:
        return self.place / "set"

    @property
    def checkpoint_path(self) -> Path:
        return self.root / "checkpoint.pt"

    @property
    def result_path(self) -> Path:
        return self.root / "result.json"

    def claim(self, identity: dict[str, Any]) -> None:
        """Makes the folder this run's, or finds that it already is.

        `identity` is the run's settings and dataset fingerprint. Raises `StoreError` where the folder holds another
        run or other files.
        """
        held = self._holder()
        if self.holds_another(identity):
            changed = _first_difference(held, identity)
            raise StoreError(f"{self.place} holds another run ({changed}); choose another --out, or remove the folder")
        if held is not None:
            self.place.pull(self.checkpoint_path.name, self.result_path.name)
            return
        if not self.place.is_empty():
            raise StoreError(f"{self.place} is not empty and holds no run of ptm-ray; choose another --out")
        # What the copy here still holds is of a run that was removed at its URL.
        self.place.forget()
        atomic.check_space(self.root, 64 * 2**20, "a run")
        atomic.write_text(self._own, json.dumps(identity, indent=2))
        self.place.push(self._own.name)

    def holds_another(self, identity: dict[str, Any]) -> bool:
        """Whether the folder belongs to a run, and to another than this."""
        held = self._holder()
        return held is not None and held != json.loads(json.dumps(identity))

    @property
    def _own(self) -> Path:
        return self.root / "run.json"

    def _holder(self) -> dict[str, Any] | None:
        """The identity of the run that the folder belongs to; None where there is none yet."""
        return self._read(self._own)

    def _read(self, path: Path) -> dict[str, Any] | None:
        """What a file of JSON in this folder says; None where it is not there."""
        text = self.place.read(path.name)
        if text is None:
            return None
        try:
            held: dict[str, Any] = json.loads(text)
        except ValueError:
            raise StoreError(f"{self.place / path.name} is damaged; choose another --out, or remove it") from None
        return held

    def load_result(self) -> dict[str, Any] | None:
        """Scores, cost and history of the run where it has come to an end before; else None."""
        return self._read(self.result_path)

    def finished(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Identity and result of a run that has come to its end. Raises `StoreError` where the folder holds none."""
        held, result = self._holder(), self.load_result()
        if held is None or result is None:
            raise StoreError(f"{self.place} holds no finished run; give the folder that `ptm-ray distill` wrote to")
        return held, result

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Everything that the run needs to go on as if it had never stopped."""
        with atomic.replacing(self.checkpoint_path) as temporary:
            # For any machine, whatever this one has. By way of memory, as torch calls a full disk a RuntimeError.
            held = io.BytesIO()
            torch.save(_on("cpu", state), held)
            temporary.write_bytes(held.getbuffer())
        self.place.push(self.checkpoint_path.name)

    def publish(self) -> None:
        """Carries over what was made at the end; the result last, which says that all is there."""
        own = {self._own, self.checkpoint_path, self.result_path}
        made = sorted(file for file in self.root.rglob("*") if file.is_file() and file not in own)
        self.place.push(*(file.relative_to(self.root).as_posix() for file in made), self.result_path.name)

    def take_over(self, other: Path) -> None:
        """The checkpoint of another folder, for the run here to go on from, unless it has come further itself."""
        held, theirs = self.load_checkpoint(), RunFolder(other).load_checkpoint()
        if held is not None and theirs is not None and held["step"] > theirs["step"]:
            return
        with atomic.replacing(self.checkpoint_path) as temporary:
            shutil.copyfile(other / self.checkpoint_path.name, temporary)
        self.place.push(self.checkpoint_path.name)

    def load_checkpoint(self, device: str = "cpu") -> dict[str, Any] | None:
        """The last checkpoint, or None. Only tensors and plain values are read, never pickled objects.

        Its tensors are put on `device`.
        """
        if not self.place.has(self.checkpoint_path.name):
            return None
        try:
            state: dict[str, Any] = torch.load(self.checkpoint_path, weights_only=True)
        except Exception as error:
            path = self.place / self.checkpoint_path.name
            raise StoreError(
                f"{path} can't be read ({type(error).__name__}); remove it to start this run over"
            ) from error
        moved: dict[str, Any] = _on(device, state)
        return moved


def _on(device: str, state: Any) -> Any:
    """The same state, its tensors on a device."""
    if isinstance(state, torch.Tensor):
        return state.to(device)
    if isinstance(state, dict):
        return {key: _on(device, value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_on(device, value) for value in state)
    return state


def _first_difference(held: Any, asked: Any, path: str = "") -> str:
    if isinstance(held, dict) and isinstance(asked, dict):
        for key in [*held, *(k for k in asked if k not in held)]:
            if held.get(key) != json.loads(json.dumps(asked.get(key))):
                return _first_difference(held.get(key), asked.get(key), f"{path}.{key}" if path else str(key))
    return f"{path} is {held!r} there, {asked!r} here"
