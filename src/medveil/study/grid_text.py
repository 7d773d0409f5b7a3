"""Words and cells that the tables of all studies share."""

from collections.abc import Sequence

from medveil.study.grid_result import Spread
from medveil.study.grid_spending import Spending, Together

PHANTOM = "Synthetic phantom images: these figures say nothing about patients."
_TITLES = {"auc": "AUC", "balanced_accuracy": "Balanced accuracy", "dice": "Dice"}


def title(metric: str) -> str:
    """A metric's name for readers."""
    return _TITLES[metric]


def spending_notes(spending: Spending) -> list[str]:
    """How often the same patients were used, and what that costs together."""
    said = [_together(entry) for entry in spending.together]
    if spending.unprotected:
        said.append(
            f"{_runs(spending.unprotected)} without differential privacy used the same patients: what is published of "
            "them is outside every guarantee."
        )
    if spending.unfinished:
        said.append(
            f"{_runs(spending.unfinished)} began and did not finish. What a private one of them released "
            "is charged in its ledger and is not in the sums above."
        )
    return said


def _together(entry: Together) -> str:
    if entry.runs == 1:
        start = f"One private run used {entry.dataset}."
    else:
        start = (
            f"The same patients were used {entry.runs} times: every private run was trained on {entry.dataset}, and "
            "who sees several of them learns more than any one epsilon says."
        )
    cost = "no finite epsilon" if entry.epsilon is None else f"epsilon {entry.epsilon:.3g}"
    whose = "It costs" if entry.runs == 1 else "Together they cost"
    sentences = [
        start,
        f"{whose} at most {cost} at delta {entry.delta:g} (unit: one {entry.unit}, {entry.relation}).",
    ]
    if entry.ledgers is not None:
        sentences.append(
            f"The fullest ledger states epsilon {entry.ledgers:.3g} for these data, other runs on it included."
        )
    return " ".join(sentences)


def _runs(count: int) -> str:
    return "One run" if count == 1 else f"{count} runs"


def spread_text(spread: Spread | None) -> str:
    """Mean, standard deviation and range in words; "-" of nothing."""
    if spread is None:
        return "-"
    if spread.sd is None:
        return f"{spread.mean:.3f}"
    return f"{spread.mean:.3f} ± {spread.sd:.3f} ({spread.low:.3f} to {spread.high:.3f})"


def number_text(value: float | None) -> str:
    """Four digits, or "-" where there is nothing."""
    return "-" if value is None else f"{value:.4g}"


def markdown_line(cells: Sequence[str]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
