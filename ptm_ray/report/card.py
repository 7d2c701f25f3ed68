"""`card.md`: what a set is, how to train on it, what it costs and what it does not promise."""

from typing import Any

from ptm_ray.report.audit import paragraph
from ptm_ray.report.tables import markdown, plain, recalls
from ptm_ray.store.artefact import SyntheticSet

TEN_LINES = """```python
import numpy as np, torch, ptm_ray as ptm
s = ptm.SyntheticSet.load(".")
images, labels = torch.tensor(s.images), torch.tensor(s.probabilities)  # of the classes: one-hot, or learned
net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear({classes}))  # any network of your own
opt = torch.optim.SGD(net.parameters(), lr={lr}, momentum=0.9, weight_decay=5e-4)
for step in range({steps}):
    opt.zero_grad()
    torch.nn.functional.cross_entropy(net(images), labels).backward()
    opt.step()
predicted = net(torch.tensor(s.normalise(pixels))).argmax(1)  # pixels: (n, height, width[, 3]) uint8 of your own
```"""


def started_from(init: str, outer_step: int) -> str:
    """How the set began, and what that means for those whose images were used; `outer_step` is that of the set."""
    if init == "noise":
        return "The images were started from **Gaussian noise**; no real image was copied into them."
    what = "were started from real training images**, which can be recognised in the result"
    if outer_step == 0:
        what = f"are real training images** (`{init}`), as they are"
    return f"**Warning: the images {what}. Where those are private, distil with `--images.init noise` instead."


def number(recipe: dict[str, Any]) -> str:
    """How many images of each class."""
    if recipe["initialisation"] == "real-natural":
        return f"{recipe['ipc']} images per class on average"
    return f"{recipe['ipc']} images per class"


def inner_lr(recipe: dict[str, Any]) -> str:
    """What was learned of it, if anything."""
    found = recipe["inner_lr"] or {}
    shown = ", ".join(f"{where.replace('_', ' ')} {lr:.4g}" for where, lr in found.items())
    return f", learned inner lr ({shown})" if shown else ""


def card(made: SyntheticSet, scores: dict[str, Any]) -> str:
    """The card's text."""
    recipe, data = made.recipe, made.recipe["dataset"]
    evaluation = recipe["config"]["evaluation"]
    zca = " and ZCA-whitened" if recipe["normalisation"]["zca"] else ""
    names = ", ".join(map(plain, data["class_names"]))
    notes = "".join(f"- {note}\n" for note in map(plain, data["notes"]))
    ten_lines = TEN_LINES.format(classes=len(data["class_names"]), lr=evaluation["lr"], steps=evaluation["steps"])
    return f"""# {plain(data["name"])}, distilled to {number(recipe)}

{len(made.labels)} synthetic images of {len(data["class_names"])} classes ({names}), made by
ptm-ray {recipe["versions"]["ptm-ray"]} with method `{recipe["config"]["method"]}`, seed {recipe["seed"]}, from the
dataset with fingerprint `{data["fingerprint"][:16]}`. Licence of the source: {data["licence"]}. \
{"Source: " + data["source"] + "." if data["source"] else ""}
{notes}
## How it began

{started_from(recipe["initialisation"], recipe["outer_step"])}

Distillation alone is **no guarantee of privacy**: membership and properties of the training data can be inferred from
trajectory-matched sets (arXiv 2206.00240 and its refutation 2209.14987; 2502.12976; 2603.01053).

{paragraph(recipe.get("audit"))}

## How well networks train on it

Test split, percent, mean ± standard deviation over the networks' seeds (of random real images: over draws, each the
mean of its networks); every row by one recipe ({evaluation["steps"]} update steps of SGD with momentum; full data
{evaluation["full_steps"]}). Which outer step's set was kept was decided on the validation split; the test split decided
nothing.

{markdown(scores)}

Recall per class:

{recalls(scores, data["class_names"])}

## How to train on it

`synthetic.parquet` holds the images as learned (`pixels`: normalised float32{zca}, shape {recipe["shape"]}) and as
pictures; `synthetic.npz` holds the pictures in MedMNIST's layout. `recipe.json` has everything else: mean and standard
deviation, augmentation ({", ".join(recipe["augmentation"]) or "none"}){inner_lr(recipe)}.

{ten_lines}
"""
