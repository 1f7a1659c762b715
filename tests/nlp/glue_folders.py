"""Tasks in GLUE's layout, small and with something to learn, for tests to write and to spoil."""

from pathlib import Path

GOOD = ["good", "great", "fine", "lovely", "superb"]
BAD = ["bad", "poor", "awful", "dull", "grim"]


def sentence(number: int) -> tuple[str, int]:
    """Return a sentence and its class: whether it praises."""
    word = (GOOD if number % 2 else BAD)[number // 2 % 5]
    return f'film {number // 10} is "{word} , and the cast {word} too', number % 2


def write(path: Path, rows: list[list[object]], end: str = "\n") -> Path:
    """Write a table, tabs between cells."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join("\t".join(map(str, row)) + end for row in rows).encode())
    return path


def sst2(root: Path, train: int = 64, dev: int = 24) -> Path:
    """Write SST-2's layout: names first, sentence and label; the test file has an index and no label."""
    folder = root / "SST-2"
    write(folder / "train.tsv", [["sentence", "label"], *map(sentence, range(train))])
    write(folder / "dev.tsv", [["sentence", "label"], *(sentence(n) for n in range(100, 100 + dev))])
    write(folder / "test.tsv", [["index", "sentence"], *([n, sentence(n)[0]] for n in range(10))])
    return folder


def cola(root: Path) -> Path:
    """Write CoLA's layout: no names, but in the test file."""
    folder = root / "CoLA"
    for split, numbers in (("train", range(64)), ("dev", range(100, 124))):
        rows = ([f"s{n}", sentence(n)[1], "" if n % 2 else "*", sentence(n)[0]] for n in numbers)
        write(folder / f"{split}.tsv", list(rows))
    write(folder / "test.tsv", [["index", "sentence"], *([n, sentence(n)[0]] for n in range(10))])
    return folder


def stsb(root: Path) -> Path:
    """Write STS-B's layout: ten columns, a score of 0 to 5."""
    folder = root / "STS-B"
    names = [
        "index",
        "genre",
        "filename",
        "year",
        "old_index",
        "source1",
        "source2",
        "sentence1",
        "sentence2",
        "score",
    ]
    for split, numbers in (("train", range(64)), ("dev", range(100, 124)), ("test", range(9))):
        rows: list[list[object]] = [list(names)]
        for n in numbers:
            score = n * 7 % 6
            rows.append([n, "g", "f", "y", n, "none", "none", "a " * (score + 1), "a b c", f"{score}.000"])
        write(folder / f"{split}.tsv", [row[:9] for row in rows] if split == "test" else rows)
    return folder


def mnli(root: Path) -> Path:
    """Write MNLI's layout: the label is the last of 12 columns for training, of 16 for development."""
    folder = root / "MNLI"
    classes = ["entailment", "neutral", "contradiction"]
    start = [
        "index",
        "promptID",
        "pairID",
        "genre",
        "parse1",
        "parse2",
        "parse3",
        "parse4",
        "sentence1",
        "sentence2",
    ]

    def rows(numbers: range, labels: int) -> list[list[object]]:
        """Give so many annotators' labels, and then the one that counts."""
        names: list[list[object]] = [[*start, *(f"label{n}" for n in range(1, labels + 1)), "gold_label"]]
        for n in numbers:
            cells: list[object] = [n, *"abcdefg", f"x {n}", ["yes", "maybe", "no"][n % 3]]
            names.append([*cells, *([classes[(n + 1) % 3]] * labels), classes[n % 3]])
        return names

    write(folder / "train.tsv", rows(range(60), 1))
    write(folder / "dev_matched.tsv", rows(range(100, 112), 5))
    write(folder / "dev_mismatched.tsv", rows(range(200, 215), 5))
    for name in ("test_matched", "test_mismatched"):
        write(folder / f"{name}.tsv", [row[:10] for row in rows(range(6), 1)])
    return folder


def mrpc(root: Path) -> Path:
    """Write MRPC's layout: a byte order mark, and the label's column is called index in the test file."""
    folder = root / "MRPC"
    for split, numbers in (("train", range(64)), ("dev", range(100, 120)), ("test", range(8))):
        first = "index" if split == "test" else "Quality"
        rows: list[list[object]] = [[f"\ufeff{first}", "#1 ID", "#2 ID", "#1 String", "#2 String"]]
        for n in numbers:
            a, label = sentence(n)
            rows.append([n if split == "test" else label, n, n, a, a if label else "no"])
        write(folder / f"{split}.tsv", rows, end="\r\n")
    return folder
