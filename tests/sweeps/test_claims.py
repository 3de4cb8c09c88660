"""Who runs which trial."""

import ast
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from optuna.samplers import TPESampler
from optuna.trial import TrialState

from opusclip_mlops.sweeps import board, claims
from opusclip_mlops.sweeps.claims import Claim, Claims, is_process_gone, this_process
from opusclip_mlops.sweeps.stopping_early import Progress
from opusclip_mlops.sweeps.studies import Study, open_study
from tests.sweeps.small_sweeps import claims_of, config_of, end, study_of

GRID = {"method": "grid", "parameters": {"x": {"values": list(range(12))}}}


def test_workers_never_run_the_same_trial(tmp_path: Path) -> None:
    """Four claim at once until nothing is left: each point of the grid is run once."""
    study_of(tmp_path, config_of(**GRID), count=12)
    ran: list[Claim] = []

    def work() -> None:
        mine = claims_of(open_study(str(tmp_path / "study.journal"), "s"))
        while not mine.is_over():
            if claim := mine.next():
                ran.append(claim)
                end(mine, claim, float(claim.number))

    threads = [threading.Thread(target=work) for _ in range(4)]
    [one.start() for one in threads]
    [one.join(60) for one in threads]
    assert sorted(one.values["x"] for one in ran) == list(range(12))
    assert sorted(one.number for one in ran) == list(range(12))


def test_a_trial_begun_beyond_the_count_is_left_and_taken_up_later(tmp_path: Path) -> None:
    """Two workers that both see one trial left begin two: the second leaves its own at once."""
    study = study_of(tmp_path, config_of(**GRID), count=1)
    mine, other = claims_of(study), claims_of(study)
    assert mine._begin(1)
    assert other._begin(1) is None
    end(mine, Claim(0, 1, 0, {}), 1.0)
    assert mine.is_over()
    more = claims_of(open_study(str(tmp_path / "study.journal"), "s", count=3))
    taken = [more.next(), more.next()]
    assert [one and (one.number, one.values["x"]) for one in taken] == [(1, 1), (2, 2)]


def dead_process() -> dict[str, object]:
    """A process of this machine that has died."""
    code = "from opusclip_mlops.sweeps.claims import this_process; print(this_process())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return dict(ast.literal_eval(done.stdout))


def earlier_process() -> dict[str, object]:
    """A process of this machine, as the machine was before it was begun anew."""
    return {**this_process(), "host": f"{socket.gethostname()} earlier pid:[1]"}


def far_away(study: Study) -> tuple[Claims, Claim]:
    """A worker of another machine, and the trial that it runs."""
    far = claims_of(study)
    far._me = far._me | {"host": "elsewhere"}
    claim = far.next()
    assert claim
    return far, claim


def test_a_process_is_known_to_be_dead_by_its_number_and_start() -> None:
    """One that has its number since is another one; of another machine nothing is known."""
    me = this_process()
    assert is_process_gone(me) is False
    assert is_process_gone(me | {"started_s": 1.0}) is True
    assert is_process_gone(me | {"host": "elsewhere"}) is None


def test_what_a_dead_worker_had_is_tried_again(tmp_path: Path) -> None:
    """By one of those who find it, with the same values, and the others see it done."""
    study = study_of(tmp_path, config_of(), count=2)
    first = claims_of(study)
    first._me = dead_process()
    lost = first.next()
    assert lost
    told = []
    workers = [claims_of(study, on_lost=told.append) for _ in range(2)]
    taken = [one.next() for one in workers]
    assert told
    assert told[0].last._trial_id == lost.trial_id
    again = next(one for one in taken if one and one.number == lost.number)
    assert (again.attempt, again.values) == (2, lost.values)
    assert sorted(one.number for one in taken if one) == [0, 1]
    assert not first.end(lost, TrialState.COMPLETE, 1.0, "")
    for worker, claim in zip(workers, taken, strict=True):
        end(worker, claim, 1.0)
    assert first.is_over()
    assert [len(one.attempts) for one in first.board().slots] == [2, 1]


def test_who_is_told_lost_at_once_by_two_is_tried_again_once(tmp_path: Path) -> None:
    """Both ask for a further attempt: the first that stands in the study counts."""
    study = study_of(tmp_path, config_of(), count=1)
    mine, other = claims_of(study), claims_of(study)
    assert mine.next()
    [slot] = mine.board().slots
    mine.lose(slot)
    other.lose(slot)
    found = mine.board()
    assert len(found.slots[0].attempts) == 2
    assert len(found.doubles) == 1
    assert mine.next()
    assert other.next() is None
    assert [one.state for one in mine.board().doubles] == [TrialState.FAIL]


def test_who_finds_a_worker_lost_and_dies_leaves_one_that_runs_the_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between asking for a further attempt and ending the lost one: its worker, cut off, ends."""
    study = study_of(tmp_path, config_of(), count=1)
    far, claim = far_away(study)
    dying = claims_of(study)
    monkeypatch.setattr(dying, "_end_lost", lambda *_: None)
    dying.lose(dying.board().slots[0])
    third = claims_of(study)
    assert far.is_still_mine(claim) is False
    again = third.next()
    assert again
    assert (again.number, again.attempt) == (0, 2)
    assert third.is_still_mine(again)
    # A search that learns takes who is said to run for bad.
    assert third.board().slots[0].attempts[0].state == TrialState.FAIL
    assert not far.end(claim, TrialState.COMPLETE, 0.5, "")


def test_a_trial_that_kills_its_workers_is_given_up(tmp_path: Path) -> None:
    """After four lost ones: else it would go on for ever. Those that were stopped do not count."""
    study = study_of(tmp_path, config_of(), count=1)
    mine = claims_of(study)
    for attempt in range(1, 7):
        claim = mine.next()
        assert claim
        assert claim.attempt == attempt
        mine.give_up(claim)
    for _ in range(board.MOST_LOSSES):
        assert mine.next()
        mine.lose(mine.board().slots[0])
    assert mine.next() is None
    assert mine.is_over()
    assert mine.board().slots[0].state == "failed"


def test_a_worker_of_another_machine_is_lost_when_it_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sign of life counts anew, whatever the clocks say; who was given up learns of it."""
    study = study_of(tmp_path, config_of(), count=1)
    far, claim = far_away(study)
    now_s = 1000.0
    monkeypatch.setattr(claims.time, "monotonic", lambda: now_s)
    near = claims_of(study)
    assert near.next() is None
    now_s += claims.STALE_S - 1
    assert near.next() is None
    assert far.is_still_mine(claim)
    now_s += claims.STALE_S - 1
    assert near.next() is None
    now_s += claims.STALE_S - 1
    assert near.next() is None
    now_s += 2
    assert near.next()
    assert not far.is_still_mine(claim)


def test_a_target_ends_the_sweep(tmp_path: Path) -> None:
    """Once a trial has reached it no other is begun."""
    study = study_of(tmp_path, config_of(metric={"name": "loss", "target": 0.1}), count=5)
    mine = claims_of(study)
    end(mine, mine.next(), 0.2)
    assert not mine.is_over()
    end(mine, mine.next(), 0.05)
    assert mine.is_over()
    assert mine.next() is None


def test_a_program_that_never_works_ends_the_sweep(tmp_path: Path) -> None:
    """Five failures and nothing else: the sixth would fail too."""
    mine = claims_of(study_of(tmp_path, config_of(), count=50))
    for _ in range(5):
        claim = mine.next()
        assert claim
        mine.end(claim, TrialState.FAIL, None, "exit code 1")
    assert mine.is_over()


def test_a_trial_is_compared_with_all_others_at_its_band(tmp_path: Path) -> None:
    """Those that run, too; their values are shared at the bands alone."""
    more = {"early_terminate": {"type": "hyperband", "min_iter": 2, "eta": 2}}
    study = study_of(tmp_path, config_of(**more), count=2)
    good, bad = claims_of(study), claims_of(study)
    pair = []
    for worker, values in ((good, (5.0, 5.0, 1.0)), (bad, (5.0, 5.0, 4.0))):
        claim, progress = worker.next(), Progress(study.config.hyperband, maximizes=False)
        assert claim
        for step, value in enumerate(values):
            if (band := progress.add(step, value)) is not None:
                worker.report(claim, band, value)
        pair.append(progress)
    third = claims_of(study)
    assert third.board().slots[0].last.intermediate_values == {2: 1.0}
    assert not good.is_behind(pair[0])
    assert not bad.is_behind(pair[1])
    # Of three values at eta 2 the second best is the last that goes on.
    assert good.report(Claim(0, 1, 0, {}), 4, 0.5) is None


def test_a_search_learns_from_what_ended(tmp_path: Path) -> None:
    """Bayes: after some trials most of the new ones lie near the best."""
    config = config_of(method="bayes", metric={"name": "loss", "goal": "minimize"})
    mine = claims_of(study_of(tmp_path, config, count=40))
    mine._sampler = TPESampler(seed=1)
    drawn = []
    while claim := mine.next():
        drawn.append(claim.values["x"])
        end(mine, claim, (claim.values["x"] - 0.3) ** 2)
    assert len(drawn) == 40
    late = [abs(one - 0.3) for one in drawn[20:]]
    assert sorted(late)[len(late) // 2] < 0.15


def test_this_process_is_named_by_its_number() -> None:
    """For whoever looks whether it lives."""
    assert this_process()["pid"] == os.getpid()
    # Two machines of one name have begun at different times.
    assert Path("/proc/sys/kernel/random/boot_id").read_text().strip() in this_process()["host"]


def test_a_sweep_that_others_work_at_is_not_stopped_by_one(tmp_path: Path) -> None:
    """A worker of another machine counts, one that died here does not."""
    study = study_of(tmp_path, config_of(), count=1)
    for me, expected in ((dead_process(), False), ({**this_process(), "host": "far"}, True)):
        mine = claims_of(study)
        mine._me = me
        assert mine.next()
        assert claims_of(study).is_worked_at() is expected


@pytest.mark.parametrize(("host", "is_alone", "state"), [
    (None, True, "waiting"), (None, False, "running"), ("elsewhere", True, "running"),
])  # fmt: skip
def test_a_machine_that_was_begun_anew_has_ended_its_workers(
    tmp_path: Path, host: str | None, is_alone: bool, state: str
) -> None:
    """Where no command works at the study; of another machine nothing is known even then."""
    study = study_of(tmp_path, config_of(), count=1)
    lost = claims_of(study)
    lost._me = earlier_process() | ({"host": host} if host else {})
    assert lost.next()
    mine = claims_of(study, is_alone=is_alone)
    assert mine.is_worked_at() is (state == "running")
    mine.reclaim(mine.board(), 1)
    assert mine.board().slots[0].state == state


def test_who_gives_up_a_trial_knows_whether_it_was_over(tmp_path: Path) -> None:
    """Its end may have been told already, though the answer never came."""
    mine = claims_of(study_of(tmp_path, config_of(), count=2))
    ended, left = mine.next(), mine.next()
    end(mine, ended, 1.0)
    assert ended
    assert left
    assert [mine.give_up(one) for one in (ended, left, left)] == [False, True, True]
    assert [one.state for one in mine.board().slots] == ["complete", "waiting"]


@pytest.mark.parametrize("how", ["stopped", "lost"])
def test_a_trial_that_was_given_up_says_why(tmp_path: Path, how: str) -> None:
    """A worker that MLflow was away from for long was not stopped by anybody."""
    mine = claims_of(study_of(tmp_path, config_of(), count=1))
    claim = mine.next()
    assert claim
    mine.give_up(claim, f"its worker was {how}")
    assert mine.board().ended() == {(0, 1): (how, f"its worker was {how}")}
