"""Write the measured tables into README.md and the pages of docs/: `python -m benchmarks.readme`.

Sections between `<!-- name -->` and `<!-- /name -->` are made from benchmarks/results and from nothing else.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pandas as pd

from benchmarks import ablation, accuracy, accuracy_tables, command, saliency, saliency_tables, soap_oracle, speed
from clipviz import METHODS

ROOT = Path(__file__).parent.parent


def study_runs() -> pd.DataFrame:
    """The runs of the study, without those of variants of a method."""
    runs = accuracy.read_runs()
    return runs[runs["method"].isin(METHODS)]


def accuracy_section() -> str:
    """The study, as `benchmarks.accuracy_tables` words it."""
    runs = study_runs()
    table = accuracy_tables.summarize(runs)
    return "\n".join(
        [
            *("## Accuracy on birds", "", accuracy_tables.markdown(table, runs), ""),
            *("### Without training", "", WITHOUT_TRAINING, accuracy_tables.without_training(runs)),
        ]
    )


WITHOUT_TRAINING = (
    "The same study for the methods that label all unlabeled images jointly (transductive) or one after the other "
    "(online: each when it arrives, mean of ten orders). It shows accuracy and calibration error of the labels given "
    "to the unlabeled images, and of the predictions for unseen images afterwards. All values are in %; spread is "
    "the standard deviation over the ten orders of one seed's images. `python -m benchmarks.accuracy --methods "
    "descriptions,zero_shot,transclip,stata,tda,oga --images 480 --test-images 480` continues where it was "
    "interrupted."
)


def speed_section() -> str:
    """The speed table: what was measured, the value, and the limit it was held to."""
    rows = pd.read_csv(speed.RESULTS, keep_default_na=False)
    lines = [
        f"| {r.what} | {_quantity(r.value, r.unit, '.2f')} | {_quantity(r.limit, r.unit)} |" for r in rows.itertuples()
    ]
    head = ["| what | measured | at most |", "|---|---|---|"]
    note = f"`python -m benchmarks.speed` on {rows.machine[0]}; x: ratio of times within one process."
    return "\n".join([note, "", *head, *lines])


def _quantity(value: str | float, unit: str, places: str = "g") -> str:
    """A value with its unit, a share in percent; empty where there is none."""
    if value == "":
        return ""
    return f"{100 * float(value):{places}} %" if unit == "share" else f"{float(value):{places}} {unit}"


def saliency_sections() -> dict[str, str]:
    """The tables of docs/saliency.md."""
    scores = pd.read_csv(saliency.RESULTS / "saliency.csv", keep_default_na=False)
    study = pd.read_csv(saliency.RESULTS / "saliency_soap.csv", dtype={"tau": str})
    scrambled = pd.read_csv(saliency.RESULTS / "saliency_sanity.csv")
    oracle, first = (pd.read_csv(saliency.RESULTS / f"saliency_oracle{of}.csv") for of in ("", "_first"))
    is_paired = scores["kind"] == "soap - cls_attention"
    return {
        "kinds": saliency_tables.by_kind(scores[~is_paired]),
        "attention": saliency_tables.against_attention(scores[is_paired]),
        "sides": saliency_tables.by_side(study),
        "sanity": saliency_tables.by_sanity(scrambled),
        "oracle": soap_oracle.by_oracle(oracle),
        "oracle_first": soap_oracle.by_oracle(first),
    }


def replace_sections(page: Path, sections: dict[str, str]) -> None:
    """Put the sections between their marks."""
    text = page.read_text()
    for name, section in sections.items():
        made = f"<!-- {name} -->\n{section}\n<!-- /{name} -->"
        text, n = re.subn(rf"<!-- {name} -->.*<!-- /{name} -->", lambda _, made=made: made, text, flags=re.DOTALL)
        if n != 1:
            raise ValueError(f"{page} needs one place between <!-- {name} --> and <!-- /{name} -->, found {n}")
    page.write_text(text)


def main() -> None:
    """Replace all sections; there is nothing to choose, and what is given nevertheless is refused."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    docs = ROOT / "docs"
    replace_sections(ROOT / "README.md", {"headline": accuracy_tables.headline(study_runs())})
    replace_sections(docs / "accuracy.md", {"accuracy": accuracy_section(), "ablation": ablation.section()})
    replace_sections(docs / "speed.md", {"speed": speed_section()})
    replace_sections(docs / "saliency.md", saliency_sections())


if __name__ == "__main__":
    command(main)
