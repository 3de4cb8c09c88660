"""The chain of records: whatever is done to it is found, and who holds what follows from it."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opusclip_mlops.chain import (
    Chain,
    approvals,
    been_in,
    cut_off,
    fitted,
    holder,
    holders_before,
    holders_since,
    key_of,
    made_holder,
    origin_of,
    parts_of,
    place_of,
    places,
    read_chain,
    until,
)
from opusclip_mlops.decisions import Decision, Kind, canonical, sealed, sha256_of, to_text
from opusclip_mlops.errors import RegistryError

MODEL, RUN = "clip", "run-1"


def chain_of(*moves: tuple[Any, ...]) -> tuple[Decision, ...]:
    """Records made of (kind, version, to_stage)."""
    chain = Chain(MODEL, origin_of(MODEL, RUN))
    for index, (kind, version, to_stage) in enumerate(moves):
        draft = Decision(
            kind=kind,
            model=MODEL,
            version=version,
            from_stage=place_of(chain.records, version),
            to_stage=to_stage,
            timestamp_ms=1_000 * (index + 1),
            nonce=str(index),
        )
        chain = replace(chain, records=(*chain.records, chain.next(draft)), last_number=index + 1)
    return chain.records


def stored(records: tuple[Decision, ...]) -> dict[str, str]:
    """The params of a run that holds them."""
    return {key_of(record.number): to_text(record) for record in records}


def read(params: dict[str, str]) -> Chain:
    return read_chain(params, model=MODEL, run_id=RUN)


WHOLE = chain_of(*(("promotion", number, "Production") for number in range(1, 7)))


def test_a_chain_that_nobody_touched_has_no_problems() -> None:
    """Records come back in order, other params of the run are passed over."""
    chain = read({**stored(WHOLE), "lr": "1", "1": "x", "0000007": "x", "000000": "x"})
    assert chain.records == WHOLE
    assert chain.problems == ()
    assert chain.head == f"6 {WHOLE[-1].hash}"
    assert cut_off(chain, chain.head) == []
    assert read({}).problems == ()
    assert read({}).head == ""


@pytest.mark.parametrize("number", [1, 3, 6])
def test_a_changed_record_is_found(number: int) -> None:
    """A value that was changed does not fit its hash; with a new hash it does not fit the next."""
    params = stored(WHOLE)
    content = json.loads(params[key_of(number)])
    params[key_of(number)] = canonical({**content, "version": 99})
    assert [one.number for one in read(params).problems] == [number]
    assert "was changed" in str(read(params).problems[0])


def test_a_record_written_anew_with_its_hash_is_found_by_the_next_one_or_the_head() -> None:
    """Who changes a record and its hash has to write all that follow, and the tag of the head."""
    params, head = stored(WHOLE), read(stored(WHOLE)).head
    for number in (2, 6):
        forged = replace(WHOLE[number - 1], version=99)
        forged = sealed(forged, number=number, previous_hash=forged.previous_hash)
        chain = read({**params, key_of(number): to_text(forged)})
        found = [*chain.problems, *cut_off(chain, head)]
        assert [one.number for one in found] == [3 if number == 2 else 6]


def test_a_removed_record_is_found() -> None:
    """In the middle, at the beginning, several in a row; at the end by the head."""
    params, head = stored(WHOLE), read(stored(WHOLE)).head
    for gone, expected in (
        ([3], "record 3 is missing"),
        ([1], "record 1 is missing"),
        ([2, 3, 4], "record 2 is missing, and so are all up to 4"),
    ):
        left = {key: value for key, value in params.items() if int(key) not in gone}
        assert [str(one) for one in read(left).problems] == [expected]
    for kept in (5, 0):
        cut = read(stored(WHOLE[:kept]))
        assert cut.problems == ()
        assert [str(one) for one in cut_off(cut, head)] == [
            f"its end is missing: its last record is {kept}, it had 6"
        ]


def test_reordered_and_repeated_records_are_found() -> None:
    """A record under another number says so; two of them swapped are two."""
    params = stored(WHOLE)
    params["000002"], params["000003"] = params["000003"], params["000002"]
    found = [str(one) for one in read(params).problems]
    assert "record 2 says that it is record 3" in found
    assert "record 3 says that it is record 2" in found
    repeated = {**stored(WHOLE), "000007": stored(WHOLE)["000006"]}
    assert [str(one) for one in read(repeated).problems] == ["record 7 says that it is record 6"]


def test_a_chain_fits_its_own_model_and_run_only() -> None:
    """Records that were copied from another model's history do not follow its origin."""
    elsewhere = read_chain(stored(WHOLE), model=MODEL, run_id="run-2")
    assert [str(one) for one in elsewhere.problems] == [
        "record 1 does not follow the record before it"
    ]
    other = read_chain(stored(WHOLE), model="other", run_id=RUN)
    assert len(other.problems) == 7


def test_rubbish_in_the_place_of_a_record_is_found_and_passed_over() -> None:
    """The others are read; the next record goes behind the rubbish, however far that is."""
    chain = read({**stored(WHOLE), "000007": "rubbish", "999999999": "{}"})
    assert chain.records == WHOLE
    assert [one.number for one in chain.problems] == [7, 999_999_999]
    assert chain.last_number == 999_999_999


def test_a_head_that_names_no_record_is_found() -> None:
    """A tag that somebody overwrote with anything."""
    chain = read(stored(WHOLE))
    assert [one.number for one in cut_off(chain, "rubbish")] == [0]
    assert [one.number for one in cut_off(chain, f"3 {WHOLE[3].hash}")] == [3]
    assert "names no record" in str(cut_off(chain, "9" * 4_400 + " x")[0])


def test_numbers_that_cannot_be_are_rubbish() -> None:
    """Thousands of digits in a key or in a record are no fault of whoever reads them."""
    assert read({**stored(WHOLE), "9" * 4_400: "x", "9" * 19: "x"}).problems == ()
    for name, value in (("version", 10**400), ("timestamp_ms", 10**15), ("timestamp_ms", -1)):
        made = canonical({**json.loads(to_text(WHOLE[0])), name: value})
        assert "a number in it cannot be" in str(read({"000001": made}).problems[0])
    full = read({**stored(WHOLE), "9" * 18: "x"})
    with pytest.raises(RegistryError, match="the history of 'clip' is full"):
        full.next(WHOLE[0])


@given(st.integers(0, 5), st.integers(0, 10_000), st.characters(codec="utf-8"))
def test_any_change_of_a_character_is_found(record: int, place: int, character: str) -> None:
    """One character of one record replaced by another."""
    params = stored(WHOLE)
    key = key_of(record + 1)
    text = params[key]
    place %= len(text)
    params[key] = text[:place] + character + text[place + 1 :]
    assert bool(read(params).problems) == (params[key] != text)


def test_long_texts_are_kept_in_parts() -> None:
    """A text comes back whole; one with a part changed or missing is not there."""
    text = "stages:\n" + "é\u0000😀" * 5_000
    digest = sha256_of(text)
    parts = parts_of(text)
    assert len(parts) > 1
    assert all(len(part) <= 6_000 for part in parts.values())
    assert read(parts).texts == {digest: text}
    assert read({**parts, f"{digest}.1": "x"}).texts == {}
    for surplus in ("9", "99", "00", "100", str(len(parts)), "9" * 4_400, "\u0661"):
        assert read({**parts, f"{digest}.{surplus}": 'x"'}).texts == {digest: text}
    assert read({f"{digest}.0": parts[f"{digest}.0"]}).texts == {}
    assert read(parts_of("")).texts == {sha256_of(""): ""}
    with pytest.raises(RegistryError, match="too long for a history"):
        parts_of("x" * 700_000)


def test_a_verdict_that_fits_stays_in_its_record_and_a_long_one_goes_beside() -> None:
    """The record never outgrows a param; a long verdict that is gone is found."""
    short = Decision(kind="promotion", model=MODEL, version=1, verdict={"passed": True})
    assert fitted(short) == (short, None)
    long = replace(short, verdict={"lines": ["x" * 100] * 100})
    record, text = fitted(long)
    assert text is not None
    assert (record.verdict, record.verdict_sha256) == (None, sha256_of(text))
    assert json.loads(text) == long.verdict
    made = sealed(record, number=1, previous_hash=origin_of(MODEL, RUN))
    assert len(to_text(made)) < 6_000
    assert read({**stored((made,)), **parts_of(text)}).problems == ()
    assert [str(one) for one in read(stored((made,))).problems] == [
        "record 1 has lost its verdict, or it was changed"
    ]
    with pytest.raises(RegistryError, match="too long to be recorded"):
        fitted(replace(short, reason="x" * 6_000))


def test_a_problem_that_somebody_forced_a_decision_onto_is_settled_but_still_told() -> None:
    """What a later record admits does not stand in the way any more; new damage does."""
    params = {key: value for key, value in stored(WHOLE).items() if key != "000003"}
    chain = read(params)
    admitting = Decision(
        kind="promotion", model=MODEL, version=7, to_stage="Production",
        problems=tuple(map(str, chain.unsettled)),
    )  # fmt: skip
    params["000007"] = to_text(chain.next(admitting))
    forced = read(params)
    assert [str(one) for one in forced.problems] == [
        "record 3 is missing", "record 7 was forced: record 3 is missing",
    ]  # fmt: skip
    assert forced.unsettled == ()
    del params["000002"]
    assert [str(one) for one in read(params).unsettled] == [
        "record 2 is missing, and so are all up to 3"
    ]


def test_a_long_problem_is_settled_by_what_a_record_has_room_for() -> None:
    """A record keeps the beginning of a problem; that is enough to know it again."""
    foreign = sealed(
        Decision(kind="approval", model="\x01" * 80, version=1),
        number=7, previous_hash=WHOLE[-1].hash,
    )  # fmt: skip
    params = {**stored(WHOLE), "000007": to_text(foreign)}
    (problem,) = read(params).unsettled
    assert len(str(problem)) > 200 >= len(problem.short)
    admitting = Decision(kind="promotion", model=MODEL, version=7, problems=(problem.short,))
    params["000008"] = to_text(read(params).next(admitting))
    assert read(params).unsettled == ()


def policy(text: str, number: int, after: Decision) -> Decision:
    """A record by which a policy is set, the one behind another record."""
    draft = Decision(kind="policy", model=MODEL, version=None, policy_digest=sha256_of(text))
    return sealed(draft, number=number, previous_hash=after.hash)


def test_who_enters_a_stage_past_the_policy_is_found() -> None:
    """Without a verdict, unless it was forced; before a policy and after its end there is none."""
    first = chain_of(("promotion", 1, "Production"))
    records = [*first, policy("stages: {}", 2, first[0])]
    for kind, to_stage, options in (
        ("promotion", "Production", {}), ("external", "Staging", {}), ("rollback", "Staging", {}),
        ("promotion", "Production", {"verdict": {"passed": True}}),
        ("promotion", "Production", {"verdict_sha256": sha256_of("long")}),
        ("promotion", "Production", {"forced": True}), ("demotion", "Archived", {}),
        ("external", "Deleted", {}), ("repair", "Production", {}), ("approval", "Production", {}),
    ):  # fmt: skip
        draft = Decision(kind=kind, model=MODEL, version=2, to_stage=to_stage, **options)  # type: ignore[arg-type]
        records.append(sealed(draft, number=len(records) + 1, previous_hash=records[-1].hash))
    records.append(policy("", len(records) + 1, records[-1]))
    draft = Decision(kind="promotion", model=MODEL, version=3, to_stage="Production")
    records.append(sealed(draft, number=len(records) + 1, previous_hash=records[-1].hash))
    texts = {**parts_of("stages: {}"), **parts_of("long"), **parts_of("")}
    assert [str(one) for one in read({**stored(tuple(records)), **texts}).problems] == [
        "record 3 entered Production without a verdict",
        "record 4 entered Staging without a verdict",
        "record 5 entered Staging without a verdict",
    ]


def test_a_promotion_archives_the_holder_and_leaves_the_other_stage() -> None:
    """One holder a stage; a version that goes on to Production leaves Staging empty."""
    records = chain_of(
        ("promotion", 1, "Staging"), ("promotion", 1, "Production"),
        ("promotion", 2, "Staging"), ("promotion", 2, "Production"),
    )  # fmt: skip
    assert [holder(records[:n], "Production") for n in range(5)] == [None, None, 1, 1, 2]
    assert [holder(records[:n], "Staging") for n in range(5)] == [None, 1, None, 2, None]
    assert places(records) == {1: "Archived", 2: "Production"}
    assert been_in(records, 1) == {"Staging", "Production"}
    assert made_holder(records, "Production") == records[3]
    assert made_holder(records, "Staging") is None
    assert holders_since(records, "Production", 2) == {1, 2}
    assert holders_since(records, "Production", 4) == {2}
    assert holders_since(records, "Staging", 0) == {1, 2}


@pytest.mark.parametrize("kind", ["approval", "policy", "repair"])
def test_some_kinds_of_record_move_nothing(kind: Kind) -> None:
    """Approvals, policies and repairs leave everybody in place."""
    records = chain_of(("promotion", 1, "Production"), (kind, 2, "Production"))
    assert holder(records, "Production") == 1


def test_rollbacks_go_back_one_after_the_other() -> None:
    """Not forth again, not to what was taken out or deleted; a new promotion begins anew."""
    promoted = [("promotion", version, "Production") for version in (1, 2, 3)]
    assert holders_before(chain_of(*promoted), "Production") == [2, 1]
    once = [*promoted, ("rollback", 2, "Production")]
    assert holders_before(chain_of(*once), "Production") == [1]
    twice = [*once, ("rollback", 1, "Production")]
    assert holders_before(chain_of(*twice), "Production") == []
    anew = [*once, ("promotion", 4, "Production")]
    assert holders_before(chain_of(*anew), "Production") == [2, 1]
    out = [*promoted, ("demotion", 3, "Archived")]
    assert holders_before(chain_of(*out), "Production") == [2, 1]
    deleted = [*promoted, ("external", 3, "Deleted")]
    assert holders_before(chain_of(*deleted), "Production") == [2, 1]
    again = [*promoted, ("promotion", 1, "Production")]
    assert holders_before(chain_of(*again), "Production") == [3, 2]
    assert holders_before((), "Production") == []


def test_the_past_is_read_in_the_order_of_the_chain() -> None:
    """A record with a clock that was wrong does not hide those after it."""
    records = chain_of(*(("promotion", number, "Production") for number in (1, 2, 3)))
    assert [len(until(records, at)) for at in (0, 999, 1_000, 2_500, 9_000)] == [0, 0, 1, 2, 3]
    wrong = replace(records[1], timestamp_ms=10**15)
    assert len(until((records[0], wrong, records[2]), 3_000)) == 3


def test_an_approval_counts_until_the_version_is_moved() -> None:
    """For its own version and stage; after a rollback it has to be given again."""
    records = chain_of(
        ("approval", 1, "Production"), ("approval", 1, "Staging"), ("approval", 2, "Production"),
        ("promotion", 1, "Production"), ("approval", 1, "Production"),
    )  # fmt: skip
    assert approvals(records[:3], 1, "Production") == records[:1]
    assert approvals(records[:4], 1, "Production") == ()
    assert approvals(records, 2, "Production") == records[2:3]


def test_an_approval_of_who_holds_the_stage_counts_for_nothing() -> None:
    """Nor does one outlive that its version was displaced, from whatever stage it is for."""
    records = chain_of(
        ("promotion", 1, "Production"), ("approval", 1, "Production"), ("approval", 1, "Staging"),
        ("promotion", 2, "Production"), ("approval", 1, "Production"),
    )  # fmt: skip
    assert approvals(records[:3], 1, "Production") == ()
    assert approvals(records[:3], 1, "Staging") == records[2:3]
    assert approvals(records[:4], 1, "Staging") == ()
    assert approvals(records, 1, "Production") == records[4:]
