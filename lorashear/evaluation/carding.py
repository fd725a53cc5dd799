"""The table of an evaluation in the model cards of pruned folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lorashear.disk.output import check_file, output_file
from lorashear.errors import LorashearError
from lorashear.evaluation import table
from lorashear.evaluation.evaluator import Evaluation
from lorashear.text.documents import reading

CARD, PLAN = "README.md", Path("lorashear") / "plan.json"
REPORT = Path("lorashear") / "evaluation.json"
BEGIN, END = "<!-- evaluation: lorashear eval writes what is between these lines -->", "<!-- end of evaluation -->"


def check(models: Sequence[str]) -> list[Path]:
    """The pruned folders among models. Raises LorashearError where there is none, or a card has half of the marks."""
    found = [folder for folder in (Path(name).expanduser() for name in models) if (folder / PLAN).is_file()]
    if not found:
        raise LorashearError(
            "--card writes into folders that LoRAShear wrote, and none is among the models: leave it out"
        )
    for folder in found:
        _replaced(folder, "")
        for target in (folder / CARD, folder / REPORT):
            check_file(target, overwrite=True)
    return found


def write(evaluation: Evaluation, folders: Sequence[Path]) -> None:
    """Put the table into each card, in place of an earlier evaluation's, with all that it rests on beside the plan.

    What else the card says stays as it is; each file is replaced as a whole.
    """
    contents = {folder: _replaced(folder, table.markdown(evaluation.report)) for folder in folders}
    for folder, content in contents.items():
        evaluation.save(folder / REPORT, overwrite=True)
        with output_file(folder / CARD, overwrite=True) as work:
            work.write_text(content, encoding="utf-8")


def _replaced(folder: Path, markdown: str) -> str:
    """A card with this evaluation."""
    card = folder / CARD
    with reading(card):
        text = card.read_text(encoding="utf-8") if card.exists() else ""
    if (text.count(BEGIN), text.count(END)) not in ((0, 0), (1, 1)) or text.find(BEGIN) > text.find(END):
        raise LorashearError(
            f"'{card}' has not one beginning and one end of an evaluation: remove the lines '{BEGIN}' and '{END}' from it"
        )
    section = f"{BEGIN}\n## Evaluation\n\n{markdown}\n{END}"
    if BEGIN not in text:
        return f"{text.rstrip()}\n\n{section}\n".lstrip()
    return text[: text.index(BEGIN)] + section + text[text.index(END) + len(END) :]
