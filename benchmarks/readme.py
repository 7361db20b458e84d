"""Write the measured tables into README.md: `python -m benchmarks.readme`.

Sections between `<!-- name -->` and `<!-- /name -->` are made from benchmarks/results and from nothing else.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from benchmarks import accuracy, speed

README = Path(__file__).parent.parent / "README.md"


def accuracy_section() -> str:
    """The study, as `benchmarks.accuracy` words it."""
    runs = pd.read_csv(accuracy.RUNS, dtype={"settings": str})
    return "## Accuracy on birds\n\n" + accuracy.markdown(accuracy.summarize(runs), runs)


def speed_section() -> str:
    """The speed table: what was measured, the value, and the limit it was held to."""
    rows = pd.read_csv(speed.RESULTS, keep_default_na=False)
    lines = [
        f"| {r.what} | {_quantity(r.value, r.unit, '.2f')} | {_quantity(r.limit, r.unit)} |" for r in rows.itertuples()
    ]
    head = ["| what | measured | at most |", "|---|---|---|"]
    note = f"`python -m benchmarks.speed` on {rows.machine[0]}; x: ratio of times within one process."
    return "\n".join(["## Speed", "", note, "", *head, *lines])


def _quantity(value: str | float, unit: str, places: str = "g") -> str:
    """A value with its unit, a share in percent; empty where there is none."""
    if value == "":
        return ""
    return f"{100 * float(value):{places}} %" if unit == "share" else f"{float(value):{places}} {unit}"


def main() -> None:
    """Replace the sections whose results exist."""
    text = README.read_text()
    for name, results, section in (
        ("accuracy", accuracy.RUNS, accuracy_section),
        ("speed", speed.RESULTS, speed_section),
    ):
        if results.exists():
            made = f"<!-- {name} -->\n{section()}\n<!-- /{name} -->"
            text = re.sub(rf"<!-- {name} -->.*<!-- /{name} -->", lambda _, made=made: made, text, flags=re.DOTALL)
    README.write_text(text)


if __name__ == "__main__":
    main()
