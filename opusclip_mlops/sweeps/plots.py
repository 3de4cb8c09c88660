"""Two pictures of a sweep: its values with the best so far, and what made a difference."""

from collections.abc import Mapping, Sequence
from itertools import accumulate

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from opusclip_mlops.sweeps.outcome import TrialOutcome
from opusclip_mlops.sweeps.schema import Metric

_MOST_BARS = 20


def history(trials: Sequence[TrialOutcome], metric: Metric) -> Figure:
    """Each trial's value by its number, pruned ones apart, and the best value so far as a line."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for state, colour in (("complete", "#1f77b4"), ("pruned", "#bbbbbb")):
        shown = [one for one in trials if one.state == state and one.value is not None]
        if not shown:
            continue
        numbers, values = [one.number for one in shown], [one.value or 0.0 for one in shown]
        axes.scatter(numbers, values, s=18, color=colour, label=state, zorder=3)
        if state == "complete":
            best = accumulate(values, max if metric.maximizes else min)
            axes.step(numbers, list(best), where="post", color="#d62728", label="best so far")
        axes.legend()
    axes.set(xlabel="trial")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    # A name is no formula, whatever it holds.
    axes.set_ylabel(metric.name, parse_math=False)
    return figure


def importance(shares: Mapping[str, float]) -> Figure:
    """How much of the values' variance each parameter explains, the most important on top."""
    ordered = sorted(shares.items(), key=lambda pair: pair[1])[-_MOST_BARS:]
    figure = Figure(figsize=(8, 1.2 + 0.35 * len(ordered)), layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh([name for name, _ in ordered], [share for _, share in ordered])
    axes.bar_label(bars, fmt="%.2f", padding=3)
    for name in axes.get_yticklabels():
        name.set_parse_math(False)
    axes.set(xlabel="share of the variance (fANOVA)", xlim=(0, 1.1))
    return figure
