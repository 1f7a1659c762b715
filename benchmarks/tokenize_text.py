"""Time tokenising.

A text of --size is made in a temporary folder: the lines of FILE over and over, each time in another order,
and one word in fifty made of the halves of two others, so that new words keep coming, as in real text. Then,
in turns, over --rounds:

    prepare            the whole command `prepare_text.py shards`, with its start, its files and its checksums
    start              the same command with 0.1 MB: imports, processes, files
    bare, processes    as many processes, each of which reads lines and gives them to the library's
                       encode_batch_fast; the result is counted and dropped
    bare, threads      this process, with as many of the library's own threads

All must count the same tokens. `ratio` is the speed of prepare relative to the faster bare loop of the round,
the median over the rounds; `ratio_without_start` is that of prepare after its start, as with a long text.

    peak memory        of prepare's processes together, in proportional set size (PSS: a page that several
                       processes share counts once), sampled five times per second; also for an eighth of the
                       text: if memory is constant, both are the same. On Linux only

Examples:
    python benchmarks/tokenize_text.py --size 16MB
    python benchmarks/tokenize_text.py --size 100MB --workers 4 --rounds 5 --out tokenize
"""

import argparse
import os
from pathlib import Path

from benchmarks.common import parser
from repro.train.cli import file_size

CORES = len(os.sched_getaffinity(0))


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    found = parser(__doc__)
    found.add_argument("--text", type=Path, help="source of the text (default: Python's documentation)")
    found.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="default: byte pairs, trained here")
    found.add_argument("--size", type=file_size, default="1GB", help="of the text (default: 1GB)")
    found.add_argument("--workers", type=int, default=CORES, help=f"processes or threads (default: {CORES})")
    found.add_argument("--rounds", type=int, default=3, help="default: 3")
    found.add_argument("--scratch", type=Path, help="folder for the temporary files, twice --size")
    return found.parse_args(arguments)


if __name__ == "__main__":
    read_options()  # --help and mistakes are answered before the imports that take seconds

import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import tokenizers as library
from tqdm import tqdm

from benchmarks.common import check, machine, made, take_turns
from repro.errors import UserError
from repro.results import page, publish, table
from repro.text import files, tokenizers
from repro.text.config import TokenizerConfig
from repro.text.python_docs import python_docs
from repro.train.cli import exit_status

PREPARE = Path(__file__).resolve().parent.parent / "scripts" / "prepare_text.py"
BATCH = 1000  # lines that the bare loops give to the library at once
PIECE = 16 * 10**6  # bytes
LITTLE = 10**5  # bytes, enough for a training and a validation split
_bare: library.Tokenizer  # of a process in the bare loop


def make_text(lines: list[str], size: int, path: Path) -> int:
    """Write `size` bytes of text (and up to a line more) that does not repeat itself; return the bytes."""
    made, written = random.Random(0), 0
    lines = list(filter(None, map(str.strip, lines)))
    words = [word for line in lines for word in line.split()]
    with (
        path.open("wb") as file,
        tqdm(total=size, unit="B", unit_scale=True, desc="making text", leave=False, disable=None) as bar,
    ):
        while written < size:
            made.shuffle(lines)
            for line in lines:
                parts = line.split(" ")
                for place in range(made.randrange(50), len(parts), 50):
                    first, second = made.choice(words), made.choice(words)
                    parts[place] = first[: (len(first) + 1) // 2] + second[len(second) // 2 :]
                written += file.write((" ".join(parts) + "\n").encode())
                if written >= size:
                    break
            bar.update(file.tell() - bar.n)
    return written


def run_prepare(text: Path, tokenizer: Path, workers: int) -> dict[str, Any]:
    """Run the command on a text; return seconds, tokens and peak memory.

    Raises:
        UserError: the command failed.
    """
    with tempfile.TemporaryDirectory(dir=text.parent) as out:
        command = [sys.executable, str(PREPARE), "shards", out, "data=text", "tokenizer=file"]
        command += [f"data.root={text}", f"tokenizer.path={tokenizer}"]
        command += [f"--size={PIECE // 10**6}MB", f"--workers={workers}"]
        start = time.perf_counter()
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process:
            peak = [0]
            watch = threading.Thread(target=_watch, args=(process, peak))
            watch.start()
            _, err = process.communicate()
            seconds = time.perf_counter() - start
            watch.join()
        if process.returncode != 0:
            raise UserError(f"scripts/prepare_text.py failed: {err.strip().splitlines()[-1]}")
        manifest = json.loads((Path(out) / "manifest.json").read_text())
    tokens = sum(split["tokens"] for split in manifest["splits"].values())
    return {"seconds": seconds, "tokens": tokens, "peak_MB": peak[0] / 1e6 if peak[0] else None}


def _watch(process: "subprocess.Popen[str]", peak: list[int]) -> None:
    """Keep the largest PSS of a process and its children in `peak`."""
    while process.poll() is None:
        try:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        except OSError:
            return
        peak[0] = max(peak[0], sum(_pss(number) for number in (str(process.pid), *children)))
        time.sleep(0.2)


def _pss(process: str) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _start(tokenizer: Path, parallel: bool) -> None:
    global _bare
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if parallel else "false"
    _bare = library.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    _bare.encode_special_tokens = True


def _encode(piece: tuple[Path, int, int]) -> int:
    path, begin, end = piece
    with path.open("rb") as file:
        file.seek(begin)
        lines = file.read(end - begin).decode().split("\n")
    batches = (lines[place : place + BATCH] for place in range(0, len(lines), BATCH))
    return sum(sum(map(len, _bare.encode_batch_fast(batch, add_special_tokens=False))) for batch in batches)


def run_bare(text: Path, tokenizer: Path, workers: int, threads: bool) -> dict[str, Any]:
    """Tokenise with processes of one thread, or one process of threads; return seconds and tokens."""
    pieces = [(text, *piece.ranges[0]) for piece in files.pieces(text, PIECE, True)]
    start = time.perf_counter()
    if threads:
        before = os.environ["TOKENIZERS_PARALLELISM"]
        try:
            _start(tokenizer, True)
            tokens = sum(map(_encode, pieces))
        finally:
            os.environ["TOKENIZERS_PARALLELISM"] = before
    else:
        with ProcessPoolExecutor(workers, initializer=_start, initargs=(tokenizer, False)) as pool:
            tokens = sum(pool.map(_encode, pieces))
    return {"seconds": time.perf_counter() - start, "tokens": tokens}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return all numbers.

    Raises:
        UserError: the loops counted different tokens.
    """
    lines = python_docs()["train"] if options.text is None else read_lines(options.text)
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        names = ("text.txt", "small.txt", "little.txt", "tokenizer")
        text, small, little, tokenizer = (Path(scratch) / name for name in names)
        if options.tokenizer is not None:
            vocabulary = tokenizers.load(options.tokenizer)
        else:
            vocabulary = tokenizers.build(TokenizerConfig("bpe", vocab_size=16_384), lambda: [lines])
        vocabulary.save(tokenizer)
        size = make_text(lines, options.size, text)
        make_text(lines, options.size // 8, small)
        make_text(lines, LITTLE, little)
        eighth = run_prepare(small, tokenizer, options.workers)
        runs = take_turns(
            {
                "prepare": lambda: run_prepare(text, tokenizer, options.workers),
                "start": lambda: run_prepare(little, tokenizer, options.workers),
                "bare, processes": lambda: run_bare(text, tokenizer, options.workers, False),
                "bare, threads": lambda: run_bare(text, tokenizer, options.workers, True),
            },
            options.rounds,
            "rounds",
        )
        vocabulary = tokenizers.load(tokenizer)
    tokens = {run["tokens"] for name, done in runs.items() for run in done if name != "start"}
    if len(tokens) > 1:
        raise UserError(f"the loops counted different tokens, {tokens}: they are not the same work")
    rounds = [*zip(*([run["seconds"] for run in done] for done in runs.values()), strict=True)]
    return {
        "library": library.__version__,
        "text": {
            "bytes": size,
            "tokens": tokens.pop(),
            "made_of": options.text.name if options.text else None,
        },
        "tokenizer": {"name": vocabulary.name, "vocab_size": vocabulary.vocab_size},
        "workers": options.workers,
        "runs": runs,
        "ratio": statistics.median(min(bare) / prepare for prepare, _, *bare in rounds),
        "ratio_without_start": after_start(rounds),
        "peak_MB": max(run["peak_MB"] or 0 for run in runs["prepare"]) or None,
        "peak_MB_of_an_eighth": eighth["peak_MB"],
    }


def after_start(rounds: list[tuple[float, ...]]) -> float | None:
    """Return `ratio_without_start` of the seconds of prepare, start and the bare loops in each round.

    It is None if the text is so short that its tokens take no longer than the start varies.
    """
    if any(prepare <= start for prepare, start, *_ in rounds):
        return None
    return statistics.median(min(bare) / (prepare - start) for prepare, start, *bare in rounds)


def read_lines(path: Path) -> list[str]:
    """Return the lines of a file.

    Raises:
        UserError: it does not exist.
    """
    if not path.is_file():
        raise UserError(f"--text {path}: no such file")
    return [line for piece in files.pieces(path, 10**9, True) for batch in piece.batches() for line in batch]


def markdown(result: dict[str, Any]) -> str:
    """Return the page of a result."""
    about, text, tokenizer = result["machine"], result["text"], result["tokenizer"]
    megabytes = text["bytes"] / 1e6
    rows = []
    for kind, runs in result["runs"].items():
        seconds = [run["seconds"] for run in runs]
        middle = statistics.median(seconds)
        spread = f"{middle:.1f} ({min(seconds):.1f} to {max(seconds):.1f})"
        speed = [f"{megabytes / middle:.2f}", f"{text['tokens'] / middle / 1e6:.3f}"]
        rows.append([kind, spread, *(["", ""] if kind == "start" else speed)])
    peak, eighth = result["peak_MB"], result["peak_MB_of_an_eighth"]
    source = made(about, f"{about['cores']} cores", f"tokenizers {result['library']}")
    later = result["ratio_without_start"]
    return page(
        "Tokenising",
        f"{source} {megabytes:,.0f} MB of text made of {text['made_of'] or 'Python documentation'}, "
        f"{text['tokens']:,} {tokenizer['name']} tokens of {tokenizer['vocab_size']:,} types; "
        f"{result['workers']} processes, or threads; {len(runs)} rounds. `--help` explains the numbers.",
        table(["", "seconds: median (range)", "MB/s", "million tokens/s"], rows),
        f"prepare runs at {result['ratio']:.3f} of the speed of the faster bare loop"
        + (f", and after its start at {later:.3f}." if later else "."),
        f"Peak memory of prepare, all its processes: {peak:.0f} MB; with an eighth of the text "
        f"{eighth:.0f} MB."
        if peak and eighth
        else "",
    )


@exit_status
def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write, and return the exit status."""
    options = read_options(arguments)
    check(options, "workers", "rounds")
    os.environ["RAYON_NUM_THREADS"] = str(options.workers)  # of the library, read when it first uses them
    result = {"machine": machine("cpu", arguments) | {"cores": CORES}} | measure(options)
    publish(result, markdown(result), options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
