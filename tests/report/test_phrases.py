import pytest

from dppa_mergekit.report.phrases import count, join_names


@pytest.mark.parametrize(
    ("number", "phrase"),
    [(0, "no tensors are"), (1, "1 tensor is"), (2, "2 tensors are"), (11, "11 tensors are")],
)
def test_verbs_follow_their_number(number: int, phrase: str) -> None:
    assert count(number, "tensor is", "tensors are") == phrase


def test_a_regular_plural() -> None:
    assert [count(number, "error") for number in (0, 1, 2)] == ["no errors", "1 error", "2 errors"]


def test_names_in_a_sentence() -> None:
    assert join_names(["a"]) == "a"
    assert join_names(["a", "b"]) == "a and b"
    assert join_names(["a", "b", "c"]) == "a, b and c"
