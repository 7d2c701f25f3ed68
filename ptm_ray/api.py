"""The Python API: the same words as the command line, from a script, a notebook or a submitted job.

Who wants to see how far a call has come gives it a `watcher`: any object with a method `update(stage, done, total,
words="")`, which is called in the calling process whenever there is something new, such as `update("evaluating", 3, 12,
"3 of 12 networks")`. `gpus_per_worker` is the share of a GPU that each worker has; 0 is none.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ptm_ray.config import DistillConfig
from ptm_ray.config.base import merge
from ptm_ray.config.files import read_settings, read_table, resolve
from ptm_ray.config.models import SCORED_BY
from ptm_ray.config.suite import SuiteConfig, read_suite
from ptm_ray.config.sweep import SweepConfig, read_sweep
from ptm_ray.data import MedicalDataset
from ptm_ray.data import load_dataset as load_dataset
from ptm_ray.data.load import CELLPHANTOM, is_known
from ptm_ray.errors import ConfigError, DataError
from ptm_ray.orchestrate import distill as on_ray
from ptm_ray.orchestrate.outcome import DistillResult as DistillResult
from ptm_ray.orchestrate.watcher import Watcher
from ptm_ray.stages.given import as_given, find_set
from ptm_ray.stages.problem import Problem
from ptm_ray.store.artefact import SyntheticSet as SyntheticSet
from ptm_ray.store.artefact import place_of_set
from ptm_ray.store.checkpoints import RunFolder
from ptm_ray.store.export import Form
from ptm_ray.store.export import export as write_export
from ptm_ray.store.places import Place, cache

if TYPE_CHECKING:
    from ptm_ray.orchestrate.audit import AuditResult as AuditResult
    from ptm_ray.orchestrate.bench import BenchResult as BenchResult
    from ptm_ray.orchestrate.sweep import SweepResult as SweepResult

Data = str | Path | MedicalDataset
#: Settings, or a file of them (TOML, or what a run has written); those given by name win over both.
Config = DistillConfig | str | Path


def default_experts_dir() -> Path:
    """Where trajectories are kept between runs: PTM_RAY_CACHE, else the user's cache folder."""
    return cache() / "experts"


def _dataset(data: Data, config: DistillConfig, data_root: str | Path | None) -> MedicalDataset:
    if isinstance(data, MedicalDataset):
        return data
    return load_dataset(data, size=config.size, data_root=data_root)


def _config(data: Data | None, config: Config | None, settings: dict[str, Any]) -> DistillConfig:
    name = {} if data is None else {"data": data.name if isinstance(data, MedicalDataset) else str(data)}
    if config is None:
        return resolve(name, settings)
    table = config.model_dump() if isinstance(config, DistillConfig) else read_settings(Path(config))
    return resolve(table, {**name, **settings})


def train_experts(
    data: Data | None = None,
    *,
    config: Config | None = None,
    experts_dir: str | Path | None = None,
    data_root: str | Path | None = None,
    workers: int | None = None,
    gpus_per_worker: float = 0.0,
    watcher: Watcher | None = None,
    **settings: Any,
) -> Path | str:
    """Trains the experts of a dataset (those that are missing) and returns the folder of their trajectories.

    `settings` are those of `DistillConfig`, nested ones as dicts: `experts={"count": 20}`.
    """
    config = _config(data, config, settings)
    dataset = _dataset(data or config.data, config, data_root)
    root = Place.of(experts_dir or default_experts_dir())
    return on_ray.train_experts(
        config, dataset, experts_root=root, workers=workers, gpus=gpus_per_worker, watcher=watcher
    )


def distill(
    data: Data | None = None,
    *,
    out: str | Path,
    config: Config | None = None,
    budget_minutes: float | None = None,
    experts_dir: str | Path | None = None,
    data_root: str | Path | None = None,
    workers: int | None = None,
    gpus_per_worker: float = 0.0,
    watcher: Watcher | None = None,
    **settings: Any,
) -> DistillResult:
    """Distils a dataset into `out` and scores the set beside random real images and full data.

    `settings` are those of `DistillConfig`: `ipc=10, method="ptm", seed=0, schedule={"kind": "count"}`. The same call
    with the same `out` goes on where a stopped one ended. `watcher.update(stage, done, total, words)` is called
    as it goes on. Raises `PtmError` of some kind, before any expert trains, for settings, images or folders that can't
    be.
    """
    if budget_minutes is not None and budget_minutes <= 0:
        raise ConfigError(f"budget_minutes must be above 0, got {budget_minutes:g}")
    config = _config(data, config, settings)
    dataset = _dataset(data or config.data, config, data_root)
    return on_ray.distill(
        config,
        dataset,
        Place.of(out),
        experts_root=Place.of(experts_dir or default_experts_dir()),
        budget_s=None if budget_minutes is None else 60 * budget_minutes,
        workers=workers,
        gpus=gpus_per_worker,
        watcher=watcher,
    )


def evaluate(
    synthetic: SyntheticSet | str | Path,
    data: Data | None = None,
    *,
    networks: tuple[str, ...] = ("convnet",),
    seeds: int = 3,
    data_root: str | Path | None = None,
    workers: int | None = None,
    gpus_per_worker: float = 0.0,
    watcher: Watcher | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Scores any set on a dataset's test split, beside random real images of equal number and full data.

    `synthetic` is a set of ours (a folder), or another's: an npz in MedMNIST's layout, a folder of class folders or a
    table, whose training images are taken as the set. Where set and dataset name the same classes in another order,
    names decide which is which; where they name others, the order does. On whatever dataset, networks see all images
    by the normalisation of a set of ours, which they are trained by. Returns {"scores": …, "by_network": …}.
    """
    problem, images, probabilities = as_scored(
        synthetic, data, networks=networks, seeds=seeds, data_root=data_root, **settings
    )
    overall, each = on_ray.evaluate(
        problem, images, probabilities, workers=workers, gpus=gpus_per_worker, watcher=watcher
    )
    return {"scores": overall, "by_network": each}


def sweep(
    asked: SweepConfig | dict[str, Any] | str | Path,
    data: Data | None = None,
    *,
    out: str | Path,
    experts_dir: str | Path | None = None,
    data_root: str | Path | None = None,
    workers: int | None = None,
    watcher: Watcher | None = None,
) -> "SweepResult":
    """Searches settings with Ray Tune: table and pictures of all trials and the best one's set, into `out`.

    `asked` is a sweep file (tune_configs has some), or what such a file says. `data` wins over the dataset named there.
    The same call with the same `out` goes on where a stopped one ended.
    """
    # Tune takes half a second to import, which those who never sweep need not wait for.
    from ptm_ray.orchestrate import sweep as on_tune

    if isinstance(asked, str | Path):
        asked = read_sweep(Path(asked))
    elif not isinstance(asked, SweepConfig):
        asked = SweepConfig.of(asked)
    if data is not None:
        name = data.name if isinstance(data, MedicalDataset) else str(data)
        asked = asked.replace(settings={"data": name})
    first = asked.check().experts_wanted()[0]
    dataset = _dataset(data or first.data, first, data_root)
    root = Place.of(experts_dir or default_experts_dir())
    return on_tune.sweep(asked, dataset, Place.of(out), experts_root=root, workers=workers, watcher=watcher)


def bench(
    asked: SuiteConfig | dict[str, Any] | str | Path,
    *,
    out: str | Path,
    experts_dir: str | Path | None = None,
    data_root: str | Path | None = None,
    only: Sequence[str] = (),
    workers: int | None = None,
    gpus_per_worker: float = 0.0,
    watcher: Watcher | None = None,
) -> "BenchResult":
    """Compares methods on datasets under one protocol: a tidy table, tables for people and pictures, into `out`.

    `asked` is a suite file (tune_configs/suites has some), or what such a file says. The same call with the same `out`
    goes on where a stopped one ended, and runs again what failed or has changed. `only`: methods to run now.
    """
    # Its report draws pictures with matplotlib, which those who never compare need not wait for.
    from ptm_ray.orchestrate import bench as on_bench

    if isinstance(asked, str | Path):
        asked = read_suite(Path(asked))
    elif not isinstance(asked, SuiteConfig):
        asked = SuiteConfig.of(asked)
    root = Place.of(experts_dir or default_experts_dir())
    return on_bench.bench(
        asked,
        Place.of(out),
        experts_root=root,
        data_root=data_root,
        only=only,
        workers=workers,
        gpus=gpus_per_worker,
        watcher=watcher,
    )


def audit(
    run: str | Path,
    data: Data | None = None,
    *,
    canaries: int | None = None,
    seed: int = 0,
    experts_dir: str | Path | None = None,
    data_root: str | Path | None = None,
    workers: int | None = None,
    gpus_per_worker: float = 0.0,
    watcher: Watcher | None = None,
) -> "AuditResult":
    """Asks how much a finished run gives away about who was in its training data, and writes that into its folder.

    Some images (`canaries`, by default 400 or as many as there can be) are put back or not as a coin falls, the run is
    made again on that, and attacks on its result say which were in. `data`: the run's dataset, where its name is no
    dataset's.
    """
    from ptm_ray.orchestrate import audit as on_canaries

    place = Place.of(run)
    identity, _ = RunFolder(place).finished()
    dataset = _dataset_of_set(data, DistillConfig.of(identity["config"]), data_root)
    return on_canaries.audit(
        place,
        dataset,
        canaries=canaries,
        seed=seed,
        experts_root=Place.of(experts_dir or default_experts_dir()),
        workers=workers,
        gpus=gpus_per_worker,
        watcher=watcher,
    )


def export(synthetic: str | Path, out: str | Path, to: Form = "pictures") -> SyntheticSet:
    """Writes a set, or that of a run, as other tools take it into `out`, a folder that holds nothing yet.

    `to`: "pictures" for class folders of PNG and a table of labels, "hub" for a dataset that Hugging Face reads.
    Returns the set.
    """
    place, target = _place_of_ours(synthetic), Place.of(out)
    if target.url is not None:
        raise ConfigError(f"{target} is no folder of this machine; export into one, and carry that over")
    return write_export(place, target.local, to)


def held_set(synthetic: str | Path) -> SyntheticSet:
    """The set of ours that a folder or URL holds, or that of the run there. Raises `DataError` where it holds none."""
    return SyntheticSet.load(_place_of_ours(synthetic))


def held_sweep(out: str | Path, data: Data | None = None, data_root: str | Path | None = None) -> SweepConfig:
    """The sweep that a folder or URL holds, for `sweep` to go on with, on `data` or what lies below `data_root`.

    Raises `ConfigError` where it holds none, or one of images that were given by a path, which it does not tell.
    """
    place = Place.of(out)
    held = read_table(place.local / "run.json") if place.has("run.json") else {}
    if not isinstance(held.get("sweep"), dict):
        raise ConfigError(f"{place} holds no sweep to go on with; check --out, or start one with a sweep file")
    asked = SweepConfig.of(held["sweep"])
    name = str(asked.settings.get("data", CELLPHANTOM))
    if data is None and data_root is None and not is_known(name) and not Path(name).exists():
        raise ConfigError(f"{place} holds a sweep of {name!r}, which is no dataset by name; pass --data NAME_OR_PATH")
    return asked


def as_scored(
    synthetic: SyntheticSet | str | Path,
    data: Data | None = None,
    *,
    networks: tuple[str, ...] = ("convnet",),
    seeds: int = 3,
    data_root: str | Path | None = None,
    **settings: Any,
) -> tuple[Problem, np.ndarray, np.ndarray]:
    """What `evaluate` scores: on what and how, images (n, channels, height, width) as networks see them, and
    probabilities (n, classes).
    """
    made = synthetic if isinstance(synthetic, SyntheticSet) else find_set(synthetic)
    # Its own recipe decides network, whitening and augmentation, so that a set of ours is scored as it was made.
    own = _scored_as_made(made.recipe["config"]) if isinstance(made, SyntheticSet) else {}
    scoring = {**own.get("evaluation", {}), "networks": networks, "seeds": seeds}
    # No image of the dataset is asked for, however few it has of a class.
    config = _config(data, None, merge({**own, "evaluation": scoring}, settings)).replace(images={"init": "noise"})
    dataset = _dataset_of_set(data, config, data_root)
    given = as_given(made, dataset, config)
    # Random images beside it are as many in all, where its classes have unequally many.
    ipc = max(1, round(len(given.images) / dataset.num_classes))
    return given.problem(dataset, config.replace(ipc=ipc)).check(), given.images, given.probabilities


def _scored_as_made(made_with: dict[str, Any]) -> dict[str, Any]:
    """What of a set's settings says how it is scored and on what: others, which need not fit that, stay behind."""
    found: dict[str, Any] = {key: made_with[key] for key in ("data", "size") if key in made_with}
    for key, part in SCORED_BY.items():
        if key in made_with:
            held = made_with[key]
            found[key] = held if part is True else {name: held[name] for name in part if name in held}
    return found


def _dataset_of_set(data: Data | None, config: DistillConfig, data_root: str | Path | None) -> MedicalDataset:
    """The dataset that a set is scored on."""
    try:
        return _dataset(data or config.data, config, data_root)
    except DataError as error:
        if data is not None or is_known(config.data):
            raise
        # A set carries the name of its dataset but no path: where files lie is nobody else's business.
        message = f"the set was made from {config.data!r}, which is no dataset by name; pass --data NAME_OR_PATH"
        raise DataError(message) from error


def _place_of_ours(synthetic: str | Path) -> Place:
    place = place_of_set(synthetic)
    if place is None:
        shown = Place.of(synthetic)
        raise DataError(f"no synthetic set {shown}; give the folder or URL of a set of ours, or of its run")
    return place
