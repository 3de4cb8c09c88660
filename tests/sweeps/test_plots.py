"""The pictures of a sweep."""

import io

from opusclip_mlops.sweeps import plots
from opusclip_mlops.sweeps.outcome import TrialOutcome
from opusclip_mlops.sweeps.schema import Metric


def outcome(number: int, value: float | None, state: str = "complete") -> TrialOutcome:
    return TrialOutcome(
        number=number, state=state, value=value, values={}, run_id="", seconds=1.0, attempts=1,
        reason="",
    )  # fmt: skip


def test_the_history_shows_each_value_and_the_best_so_far() -> None:
    """A line of what was the best by then, pruned trials apart, failed ones left out."""
    trials = [outcome(0, 3.0), outcome(1, 5.0), outcome(2, 1.0), outcome(3, 9.0, "pruned")]
    figure = plots.history([*trials, outcome(4, None, "failed")], Metric("loss"))
    [axes] = figure.axes
    complete, pruned = axes.collections
    assert complete.get_offsets().tolist() == [[0, 3], [1, 5], [2, 1]]
    assert pruned.get_offsets().tolist() == [[3, 9]]
    assert list(axes.lines[0].get_ydata()) == [3, 3, 1]
    assert axes.get_ylabel() == "loss"


def test_of_large_values_the_best_is_the_largest() -> None:
    """The line goes up."""
    figure = plots.history([outcome(0, 3.0), outcome(1, 5.0)], Metric("psnr", maximizes=True))
    assert list(figure.axes[0].lines[0].get_ydata()) == [3, 5]


def test_trials_are_counted_in_whole_numbers_and_only_what_is_there_has_a_name() -> None:
    """No half trial on the axis, and no word on pruned ones where none was pruned."""
    figure = plots.history([outcome(0, 3.0), outcome(1, 5.0)], Metric("loss"))
    [axes] = figure.axes
    assert all(tick == int(tick) for tick in axes.get_xticks())
    legend = axes.get_legend()
    assert legend
    assert [text.get_text() for text in legend.texts] == ["complete", "best so far"]


def test_a_sweep_without_values_has_an_empty_picture() -> None:
    """It is drawn all the same."""
    assert plots.history([], Metric("loss")).axes[0].lines[:] == []


def test_the_most_important_stands_on_top() -> None:
    """Twenty at most, each with its share."""
    shares = {f"p{number}": number / 300 for number in range(24)}
    [axes] = plots.importance(shares).axes
    names = [one.get_text() for one in axes.get_yticklabels()]
    assert (len(names), names[-1]) == (20, "p23")


def test_a_parameter_is_no_formula() -> None:
    """Whatever its name holds is written as it stands, and does not end the drawing."""
    figure = plots.importance({"$\\frac{$": 0.7, "lr": 0.3})
    figure.savefig(io.BytesIO())
    assert figure.axes[0].get_yticklabels()[-1].get_text() == "$\\frac{$"
