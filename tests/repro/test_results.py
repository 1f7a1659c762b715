"""Pages of results, and how a terminal shows them."""

from repro.results import as_text, page, table


def test_a_terminal_gets_aligned_tables() -> None:
    lines = [["adan", "1.23", "12,345", "", "2.5 h"], ["a b", "-10.5", "7", "", "12 min"]]
    text = page("Title", "Words.", table(["name", "ms", "bytes", "peak", "time"], lines), "The end.")
    assert as_text(text).splitlines() == [
        "# Title",
        "",
        "Words.",
        "",
        "name     ms   bytes    time",
        "----  -----  ------  ------",
        "adan   1.23  12,345   2.5 h",
        "a b   -10.5       7  12 min",
        "",
        "The end.",
    ]


def test_words_are_flush_left_and_wide_tables_fit() -> None:
    text = as_text(table(["what", "why"], [["10", "word " * 40], ["x", "word"]]))
    assert max(map(len, text.splitlines())) <= 120
    assert text.splitlines()[2].startswith("10    word word")
    assert text.count("word") == 41
