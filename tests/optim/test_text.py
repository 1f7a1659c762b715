"""Tables as text: aligned, as wide as the terminal, without empty columns."""

from adan_optim.text import aligned, without_empty


def test_columns_are_aligned() -> None:
    rows = [["name", "n"], ["a", "10"], ["long name", "7"]]
    assert aligned(rows) == ["name       n", "a          10", "long name  7"]
    assert aligned(rows, right=["n"], rule=True) == [
        "name        n",
        "---------  --",
        "a          10",
        "long name   7",
    ]


def test_a_wide_table_continues_its_longest_cells_in_further_lines() -> None:
    rows = [["what", "why", "n"], ["one two", "some words that go on", "123"], ["three", "few", "4"]]
    assert aligned(rows, right=["n"], width=29) == [
        "what     why                n",
        "one two  some words that  123",
        "         go on",
        "three    few                4",
    ]
    assert aligned(rows, width=35) == aligned(rows, width=1000)


def test_words_stay_whole() -> None:
    rows = [["word", "n"], ["indivisible", "1 day"]]
    assert aligned(rows, right=["n"], width=5) == ["word           n", "indivisible    1", "             day"]


def test_the_column_with_the_fewest_long_cells_shrinks() -> None:
    rows = [["a", "b"], *[["x x x x x x", "y"]] * 3, ["x", "y y y y y y y"]]
    lines = aligned(rows, width=20)
    assert lines[1:4] == ["x x x x x x  y"] * 3
    assert [line.split() for line in lines[4:]] == [["x", *"yyyy"], [*"yyy"]]


def test_columns_without_values_are_left_out() -> None:
    rows = [["a", "b", "c"], ["1", "-", ""], ["2", "", "x"]]
    assert without_empty(rows) == [["a", "c"], ["1", ""], ["2", "x"]]
