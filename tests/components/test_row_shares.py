"""Rows that are read more or less often."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.row_shares import mixed, repeated
from model.data.errors import InputError


@given(st.integers(1, 200), st.integers(1, 200), st.floats(0, 0.95))
def test_a_mixture_has_its_share_and_thins_only_what_there_is_too_much_of(questions, transcriptions, share):
    made = mixed([("q", i) for i in range(questions)], [("t", i) for i in range(transcriptions)], share)
    assert len(set(made)) == len(made)
    dense = sum(kind == "t" for kind, _ in made)
    if not share:
        assert (dense, len(made)) == (0, questions)
        return
    others, ratio = len(made) - dense, share / (1 - share)
    rounding = 0.5 + ratio / 2
    assert 1 in (dense, others) or dense == pytest.approx(ratio * others, abs=rounding)
    assert others == questions or dense == pytest.approx(transcriptions, abs=rounding)


def test_a_mixture_of_nothing_is_refused():
    with pytest.raises(InputError, match="there are no transcriptions to mix"):
        mixed([{"id": "a"}], [], 0.5)


@given(
    sizes=st.dictionaries(st.sampled_from("abc"), st.integers(1, 40), min_size=1),
    factor=st.floats(0.05, 3.5, allow_nan=False),
)
def test_a_family_is_read_as_often_as_its_factor_says_and_the_others_once(sizes, factor):
    rows = [{"id": f"{task}{index}", "task": task} for task, size in sizes.items() for index in range(size)]
    task = sorted(sizes)[0]
    if len(sizes) == 1 and round(factor * sizes[task]) == 0:
        return
    found = repeated(rows, {task: factor}, "vico.repeat")
    counts = {row["id"]: 0 for row in rows}
    for row in found:
        counts[row["id"]] += 1
    own = [count for row, count in counts.items() if row.startswith(task)]
    assert abs(sum(own) - factor * sizes[task]) <= 1
    assert max(own) - min(own) <= 1
    assert all(count == 1 for row, count in counts.items() if not row.startswith(task))


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"c": 2.0}, "route.repeat: no rows of the family 'c'; there are a, b"),
        ({"a": 0, "b": 0}, "route.repeat: leaves no"),
    ],
)
def test_families_that_cannot_be_repeated_are_named(factors, message):
    with pytest.raises(InputError, match=message):
        repeated([{"id": "1", "task": "a"}, {"id": "2", "task": "b"}], factors, "route.repeat")
