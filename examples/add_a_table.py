"""Add your own table to `advsphere reproduce`: does the margin m improve FastAT with HE?

The methods are trained and attacked like those of the paper's tables, with any budget:

    advsphere reproduce add_a_table:MARGIN --budget smoke

This file does the same if it is run as a script.
"""

from advsphere.cli import main
from advsphere.reproduce.tables import Method, Table

MARGIN = Table(
    name="margin",
    title="FastAT with and without a margin",
    methods=(Method("fastat"), Method("fastat", "HE"), Method("fastat", "HE, no AM")),
    suite="quick",
    headlines=("PGD-20",),
    columns={"clean": "clean"},
    paper={"FastAT": {"clean": 83.80}, "FastAT+HE": {"clean": 82.58}},
    introduction="Accuracy in %, with 95 % intervals. The paper's numbers are from its Table 3.",
)

if __name__ == "__main__":
    raise SystemExit(main(["reproduce", "add_a_table:MARGIN", "--budget", "smoke"]))
