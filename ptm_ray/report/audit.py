"""What an audit found, in words: a report, and a paragraph on the set's card."""

from typing import TYPE_CHECKING, Any

from ptm_ray.report.tables import plain, table

if TYPE_CHECKING:
    from ptm_ray.store.artefact import SyntheticSet

HEAD = ["what is handed on", "attack by", "canaries", "AUC", "named at 1 % false alarms", "ε is at least"]
ON = {"set": "the set", "full data": "a network of all images"}


def attack_rows(findings: dict[str, Any]) -> list[list[str]]:
    """A row for every attack, its cells in the order of HEAD."""
    return [
        [ON[one["on"]], one["by"], _canaries(one), _auc(one), f"{100 * one['found']:.0f} %", f"{one['epsilon']:.2f}"]
        for one in findings["attacks"]
    ]


def report(made: "SyntheticSet", findings: dict[str, Any]) -> str:
    """The text of `audit.md`."""
    data, scores = made.recipe["dataset"], findings["balanced_accuracy"]
    return f"""# What a set of {plain(data["name"])} gives away

The run was made again with its settings and as many outer steps, {findings["outer_steps"]}, on its training images but
for {findings["canaries"]} that a coin was thrown for: {findings["members"]} of them were put back. Half of all have a
wrong label. Attacks that saw the result, and not the coins, then gave every canary a score. The set made so has
{100 * scores["audited"]:.1f} % balanced accuracy on the test split, the run's own {100 * scores["run"]:.1f} %.

{_table(findings)}

- **AUC**: the chance that a canary that was in is scored above one that was not, with its 95 % interval. 50 % is what a
  coin has.
- **Named at 1 % false alarms**: of those that were in, how many an attack names that is wrong about one in a hundred of
  the others; about none of them where they are fewer (then one in as many and one is named by chance). A few patients
  who are named with certainty are hurt, whatever the average says.
- **ε is at least**: with 95 % confidence the way that this was made is not ε-differentially private below it
  (arXiv 2305.08846, one run). 0 refutes nothing. Each holds for its row alone, and is about images:
  a patient may have several.
- **Mislabelled** canaries stand for records unlike all others, ordinary ones for the rest.
- **Networks**: trained on what is handed on; how sure they are of the canary's label, beyond what networks that saw no
  canary explain. **Nearest image**: how near the nearest synthetic image is.
- **A network of all images** is what the same canaries would be exposed to if a classifier were handed on instead.

{_copied(findings)} That finds copies and no more.

Attacks are lower bounds: another one may find more, and nothing here is a guarantee. `audit/` holds a set and images
made for this audit alone; share neither.
"""


def paragraph(findings: dict[str, Any] | None) -> str:
    """What the card says."""
    if findings is None:
        return "This set has not been audited (`ptm-ray audit`)."
    return f"""The way it was made has been audited. With its settings another set was made, after a coin had been
thrown for each of {findings["canaries"]} training images, and attacks on that set said which of them were in.

{_table(findings)}

AUC (95 % interval): 50 % is what a coin has. ε: the way is not ε-differentially private below it, with 95 % confidence;
0 refutes nothing. Each holds for its row alone, and is about images: a patient may have several.
{_copied(findings)} Other attacks may find more."""


def _table(findings: dict[str, Any]) -> str:
    return "\n".join(table(HEAD, attack_rows(findings)))


def _canaries(attack: dict[str, Any]) -> str:
    return f"{attack['of']}, {attack['members']} of {attack['canaries']} in"


def _auc(attack: dict[str, Any]) -> str:
    return f"{100 * attack['auc']:.1f} % ({100 * attack['auc_low']:.1f} to {100 * attack['auc_high']:.1f})"


def _copied(findings: dict[str, Any]) -> str:
    found = findings["copies"]
    known = found.get("test_images_in_train", 0)
    return (
        f"{found['copies']} of the set's {found['images']} images lie nearer to a training image than 99 of 100 test "
        "images do, or are one to within a grey level."
        + (f" Of the test images {known} stand in the training split too; they don't count there." if known else "")
    )
