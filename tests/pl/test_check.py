"""The plot of posterior predictive checks: which rows and points it draws."""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from celldial import pl
from helpers.figures import checked, shows


def dots(panel: Axes) -> dict[float, tuple[float, str]]:
    """Return row to the observed number and its marker."""
    points = [line for line in panel.lines if line.get_linestyle() == "None"]
    return {float(point.get_ydata()[0]): (float(point.get_xdata()[0]), point.get_marker()) for point in points}


def labels(panel: Axes) -> list[str]:
    return [label.get_text() for label in panel.get_yticklabels()]


def test_failed_checks_differ_in_shape():
    adata = checked()
    panels = pl.check(adata, show=False)
    table = adata.uns["celldial"]["check"]
    zeros = table[table["check"] == "zeros"]
    assert [value for value, _ in dots(panels["zeros"]).values()] == zeros["observed"].tolist()
    assert [marker for _, marker in dots(panels["zeros"]).values()] == ["o", "o", "D"]
    assert [marker for _, marker in dots(panels["coverage"]).values()] == ["o", "o", "o"]
    assert shows(plt.gcf(), "2 of 17")
    assert labels(panels["zeros"])[:3] == ["rna, all", "rna, b1", "rna, b2"]


def test_bars_are_the_intervals():
    panels = pl.check(checked(), show=False)
    bars = [line for line in panels["dispersion"].lines if line.get_linestyle() == "-"]
    assert [tuple(bar.get_xdata()) for bar in bars] == [(0.95, 1.05)] * 3


def test_of_many_batches_those_with_failures_are_drawn():
    panels = pl.check(checked(("all", *(f"b{k}" for k in range(40)))), show=False)
    drawn = labels(panels["zeros"])
    assert len(drawn) == 16
    assert {"rna, all", "all cells", "rna, b39"} <= set(drawn)
