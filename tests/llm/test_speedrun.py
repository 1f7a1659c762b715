"""The entry for modded-nanogpt's optimizer track: the checker of its rule, and the script."""

import math
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import pytest
import torch

import adan
from llm.speedrun import significance, train_gpt_adan
from llm.speedrun.significance import Result, counts, pairwise, power, runs_for, runs_needed, statistic
from llm.speedrun.train_gpt_adan import GPT, TINY, Adan, InputError, Settings, Size

# ---------------------------------------------------------------------------------------------- the rule


def test_the_public_results_are_judged_as_published() -> None:
    rows = significance.published()
    claims = [row.claim for row in rows if row.claim]
    assert (len(rows), claims.count("counts"), claims.count("does not count")) == (59, 51, 6)
    for row in rows:
        assert row.claim in ("", "counts" if counts(row.result) else "does not count"), row.name
        if row.statistic:
            digits = len(row.statistic.partition(".")[2])
            assert statistic(row.result) == pytest.approx(float(row.statistic), abs=1.1 * 10**-digits), (
                row.name
            )


def test_the_ten_logs_of_adamw() -> None:
    at = {row.result.step: counts(row.result) for row in significance.published() if "353" in row.name}
    assert at == {4900: False, 4925: True, 4950: True}


@pytest.mark.parametrize(
    ("mean", "runs", "right"),
    [
        ("3.276", 1, True),
        ("3.27601", 1, False),
        ("3.278", 4, True),
        ("3.27800001", 4, False),
        ("3.28", 99, False),
    ],
)
def test_by_a_hair(mean: str, runs: int, right: bool) -> None:
    assert counts(Result(Fraction(mean), runs)) is right


def test_how_many_runs_a_mean_needs() -> None:
    assert [runs_needed(Fraction(mean)) for mean in ("3.276", "3.27601", "3.278", "3.2799")] == [
        1,
        2,
        4,
        1600,
    ]
    assert runs_needed(Fraction("3.28")) is None


def test_the_comparisons_in_the_readme() -> None:
    def against(new: tuple[int, str, int], old: tuple[int, str, int]) -> float:
        (a, b) = (Result(Fraction(mean), runs, step) for step, mean, runs in (new, old))
        return pairwise(a, b)

    assert against((3210, "3.2785", 10), (3225, "3.2785", 16)) == pytest.approx(0.00167, abs=5e-6)
    assert against((3210, "3.2785", 10), (3250, "3.2778", 16)) == pytest.approx(0.0027, abs=5e-5)
    assert against((3325, "3.2790", 20), (3375, "3.2788", 20)) == pytest.approx(0.00648, abs=5e-6)


def test_power_is_the_share_of_results_that_count() -> None:
    generator = torch.Generator().manual_seed(0)
    for margin, runs, sigma in ((0.001, 16, 0.0013), (0.002, 8, 0.0025), (0.003, 2, 0.0013)):
        means = (
            3.28 - margin + sigma / runs**0.5 * torch.randn(20_000, generator=generator, dtype=torch.float64)
        )
        share = ((3.28 - means) * runs**0.5 >= 0.004).double().mean().item()
        assert power(margin, runs, sigma) == pytest.approx(share, abs=0.012)  # some 3 standard errors
        needed = runs_for(margin, 0.9, sigma)
        assert power(margin, needed, sigma) >= 0.9 > power(margin, needed - 1, sigma)


def test_the_tables_in_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "speedrun.md").read_text()
    for sigma in (0.0013, 0.0025):
        assert "".join(f"    {line}\n" for line in significance.power_table(sigma).splitlines()) in page


# ---------------------------------------------------------------------------------------------- logs

HEAD = 'print(f"step:{step}/{steps} val_loss:{loss:.5f}")\n' + "=" * 100 + "\n"


def log(path: Path, *runs: str, steps: int = 50) -> str:
    """Write a log with runs, of which each is losses at steps 0, 25, 50, and return its path."""
    lines = (
        f"step:{25 * i}/{steps} val_loss:{loss} train_time:1.000s step_avg:nanms\n"
        for run in runs
        for i, loss in enumerate(run.split())
    )
    path.write_text(HEAD + "".join(lines))
    return str(path)


def checked(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Return the exit status of the checker, and what it said."""
    status = significance.main(words)
    out, err = capsys.readouterr()
    return status, out + err


def test_logs_with_several_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = log(tmp_path / "a.txt", "10.8 3.3 3.277", "10.8 3.29 3.278")
    two = log(tmp_path / "b.txt", "10.8 3.27 3.276")
    status, said = checked(capsys, one, two)
    assert status == 0
    assert "step 50: mean 3.277000, n = 3\nstandard deviation 0.001000" in said
    assert "0.005196, at least 0.004 is needed\ncounts\n" in said
    assert "further runs needed, if the mean stays: 0" in said
    status, said = checked(capsys, one, two, "--step", "25")
    assert (status, "none is enough" in said) == (1, True)
    status, said = checked(capsys, one, two, "--against", "250", "3.278", "2")
    assert (status, "against 250 steps: 0.010954" in said, "significantly better" in said) == (0, True, True)
    assert "further runs needed, if the mean stays: 2" in checked(capsys, "--mean", "3.278", "--runs", "2")[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give either logs, --losses, or --mean"),
        (["--mean", "3.27", "--losses", "3.27"], "give either logs, --losses, or --mean"),
        (["--mean", "3.27"], "--runs None: must be the number of runs"),
        (["--mean", "3.27", "--runs", "0"], "--runs 0: must be the number of runs"),
        (["--mean", "inf", "--runs", "2"], "--mean: inf is no finite loss"),
        (["--losses", "3.27", "nan"], "--losses: nan is no finite loss"),
        (
            ["--losses", "3.27", "--against", "4950", "3.2776", "10"],
            "give the step of your losses with --step",
        ),
        (
            ["--losses", "3.27", "--step", "9", "--against", "4950", "3.2776", "0"],
            "must be steps, mean and number",
        ),
        (["--power", "--sigma", "0"], "--sigma 0.0: must be positive"),
        (["nothing.txt"], "nothing.txt"),
    ],
)
def test_numbers_that_cannot_be_judged(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = checked(capsys, *words)
    assert status == 2
    assert said.startswith("error: ")
    assert message in said


def test_logs_that_cannot_be_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = log(tmp_path / "whole.txt", "10.8 3.3 3.277")
    cut = log(tmp_path / "cut.txt", "10.8 3.3 3.277", "10.8 3.3")
    long = log(tmp_path / "long.txt", "10.8 3.3 3.277 3.27", steps=75)
    diverged = log(tmp_path / "diverged.txt", "10.8 3.3 nan")
    for words, message in (
        ([log(tmp_path / "empty.txt")], "empty.txt: no validation losses"),
        ([whole, cut], "cut.txt: cut off at step 25 of 50; finish the run"),
        ([whole, diverged], "diverged.txt, step 50: nan is no finite loss"),
        ([whole, long], "the runs end at different steps"),
        ([whole, "--step", "30"], "whole.txt: no loss at step 30"),
    ):
        status, said = checked(capsys, *words)
        assert (status, message in said) == (2, True), said
    assert checked(capsys, whole, long, "--step", "50")[0] == 0


# ---------------------------------------------------------------------------------------------- the script


def test_its_adan_is_that_of_the_package() -> None:
    def after(build: Callable[[list[dict[str, object]]], torch.optim.Optimizer]) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        shapes, dtypes = [(5, 7), (3,), (4, 6)], [torch.float32, torch.float32, torch.bfloat16]
        params = [
            torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
            for shape, dtype in zip(shapes, dtypes, strict=True)
        ]
        common = dict(betas=(0.95, 0.9, 0.97), eps=1e-3)
        optimizer = build(
            [
                dict(params=params[:1], lr=0.1, weight_decay=0.3, **common),
                dict(params=params[1:], lr=0.02, weight_decay=0.0, **common),
            ]
        )
        for step in range(30):
            for p in params:
                p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
            optimizer.param_groups[0]["lr"] = 0.1 - 0.003 * step
            optimizer.step()
        return [p.detach() for p in params]

    ours = after(Adan)
    for fused in (False, None):
        theirs = after(
            lambda groups, fused=fused: adan.Adan(  # type: ignore[misc]
                groups, fused=fused, state_dtype="float32", param_rounding="split"
            )
        )
        torch.testing.assert_close(ours[:2], theirs[:2], rtol=2e-6, atol=2e-6)
        torch.testing.assert_close(ours[2], theirs[2], rtol=2**-7, atol=1e-6)  # ties are rounded otherwise


def test_the_model_is_the_benchmarks() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in GPT(Size()).parameters()) == 162_354_816
    size = Size()
    assert size.batch * size.sequence == 524_288
    assert size.validation * size.sequence == 10_485_760


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    model = GPT(TINY)
    model.initialize()
    return model


def test_the_loss_of_new_parameters_is_that_of_guessing(model: GPT) -> None:
    tokens = torch.randint(TINY.vocabulary, (3, TINY.sequence))
    assert model(tokens, tokens).item() / tokens.numel() == pytest.approx(math.log(TINY.vocabulary))
    model(tokens, tokens).backward()
    assert all(p.grad is not None for p in model.parameters())
    grouped = [p for group in model.groups().values() for p in group]
    assert len(grouped) == len({*grouped}) == len([*model.parameters()])


@torch.no_grad()
def test_logits_are_causal_and_capped(model: GPT) -> None:
    for p in model.parameters():
        p.normal_(std=0.5)
    tokens = torch.randint(TINY.vocabulary, (2, TINY.sequence))
    before = model.logits(tokens)
    tokens[:, 9] = (tokens[:, 9] + 1) % TINY.vocabulary
    after = model.logits(tokens)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.equal(before[:, 9:], after[:, 9:])
    assert 1 < after.abs().max() < 15


def test_rotation_depends_on_distances() -> None:
    cos, sin = train_gpt_adan.rotation(12, 16, torch.device("cpu"))
    torch.manual_seed(0)
    q, k = torch.randn(2, 16)
    turned_q, turned_k = (train_gpt_adan.rotate(x.expand(1, 1, 12, 16), cos, sin)[0, 0] for x in (q, k))
    scores = turned_q @ turned_k.T
    for distance in range(12):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(turned_q[:, 4:8], q[4:8].expand(12, 4))  # the pairs that are not turned


def test_schedule_and_groups(model: GPT) -> None:
    settings = Settings(steps=100, warmup=10, cooldown=0.5)
    factors = [train_gpt_adan.schedule(step, settings) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert {*factors[9:51]} == {1.0}
    assert factors[99] == pytest.approx(0.02)
    adamw = train_gpt_adan.build_optimizer(model, Settings(optimizer="adamw")).param_groups
    for group, control in zip(
        train_gpt_adan.build_optimizer(model, Settings()).param_groups, adamw, strict=True
    ):
        assert group["peak"] == pytest.approx(3 * control["peak"])
        assert group["peak"] * group["weight_decay"] == pytest.approx(
            control["peak"] * control["weight_decay"]
        )


# ---------------------------------------------------------------------------------------------- shards


def shard(path: Path, tokens: int, *, magic: int = 20240520, version: int = 1, extra: int = 0) -> Path:
    """Write the tokens 0, 1, 2, ... with a header that may be wrong."""
    data = struct.pack("<256i", magic, version, tokens, *[0] * 253)
    path.write_bytes(data + struct.pack(f"<{tokens + extra}H", *range(tokens + extra)))
    return path


def test_a_shard_is_read(tmp_path: Path) -> None:
    tokens = train_gpt_adan.open_shard(shard(tmp_path / "a.bin", 70))
    assert tokens.dtype == torch.uint16
    assert tokens.tolist() == [*range(70)]
    train_gpt_adan.write_shard(tmp_path / "b.bin", torch.arange(70))
    assert (tmp_path / "b.bin").read_bytes() == (tmp_path / "a.bin").read_bytes()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(magic=20240801), "magic number 20240801, not 20240520"),
        (dict(version=2), "version 2, not 1"),
        (dict(extra=-1), r"1162 bytes, but its header says 70 tokens, that is 1164; download it again"),
        (dict(extra=1), "1166 bytes"),
    ],
)
def test_a_shard_that_is_none(wrong: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"a\.bin: .*{message}"):
        train_gpt_adan.open_shard(shard(tmp_path / "a.bin", 70, **wrong))


def test_a_shard_that_is_cut_in_its_header(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"20240520")
    with pytest.raises(InputError, match="8 bytes, less than the header's 1024"):
        train_gpt_adan.open_shard(tmp_path / "a.bin")


def test_batches_follow_each_other(tmp_path: Path) -> None:
    paths = [shard(tmp_path / name, length) for name, length in (("a.bin", 22), ("b.bin", 21), ("c.bin", 12))]
    found = [(path.name, window[0].item(), len(window)) for path, window in train_gpt_adan.windows(paths, 10)]
    # the next shard begins when what is left is no longer than a batch and one token
    assert found == [("a.bin", 0, 11), ("a.bin", 10, 11), ("b.bin", 0, 11), ("c.bin", 0, 11)]


def test_data_that_do_not_suffice(tmp_path: Path) -> None:
    batch, held_out = TINY.batch * TINY.sequence, TINY.validation * TINY.sequence
    check = train_gpt_adan.check_data
    with pytest.raises(InputError, match=r"no fineweb_train_\*\.bin there"):
        check(tmp_path, TINY, 2)
    shard(tmp_path / "fineweb_train_000001.bin", 2 * batch + 2)
    with pytest.raises(InputError, match=r"no fineweb_val_\*\.bin there"):
        check(tmp_path, TINY, 2)
    shard(tmp_path / "fineweb_val_000000.bin", held_out + 1)
    with pytest.raises(
        InputError, match=rf"{held_out + 1} tokens; the validation needs more than {held_out + 1}"
    ):
        check(tmp_path, TINY, 2)
    shard(tmp_path / "fineweb_val_000000.bin", held_out + 2)
    check(tmp_path, TINY, 2)
    with pytest.raises(InputError, match="are 2 batches of 128 tokens, fewer than the 3 steps"):
        check(tmp_path, TINY, 3)
    window = torch.arange(batch + 1) + 200
    with pytest.raises(InputError, match=r"a\.bin: token 328, beyond the vocabulary of 256"):
        train_gpt_adan.Processes(TINY).share(Path("a.bin"), window, TINY)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("lr=1", "--set lr=1: no such setting; there are steps, optimizer"),
        ("steps=1.5", "--set steps=1.5: the value must be int"),
        ("steps=0", "steps must be at least 1"),
        ("optimizer=sgd", "optimizer must be adan, package or adamw"),
        ("matrix_factor=0", "the factors must be positive"),
        ("beta2=1", "the betas must be at least 0 and below 1"),
        ("cooldown=0", "warmup must be 0 or more"),
    ],
)
def test_settings_that_cannot_be(word: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        train_gpt_adan.settings_of([word], Settings())


# ---------------------------------------------------------------------------------------------- runs


@pytest.fixture
def threads() -> Iterator[None]:
    """Restore the number of threads, which a dry run sets to one."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def dry_run(folder: Path, *words: str) -> Path:
    """Return the log of a dry run."""
    assert train_gpt_adan.main(["--dry-run", "--out", str(folder), *words]) == 0
    (path,) = folder.iterdir()
    return path


@pytest.mark.usefixtures("threads")
def test_a_dry_run_from_shards_to_log(tmp_path: Path) -> None:
    path = dry_run(tmp_path, "2")
    text = path.read_text()
    assert text.startswith(Path(train_gpt_adan.__file__).read_text() + "\n" + "=" * 100)
    assert "not a record" in text
    first, second = significance.read_log(path)
    assert first.losses.keys() == second.losses.keys() == {0, 8}
    assert float(first.losses[0]) == pytest.approx(math.log(256), abs=1e-5)
    assert 5 < float(first.losses[8]) < 5.4
    assert first.losses[8] != second.losses[8]  # another seed


@pytest.mark.recipe
@pytest.mark.usefixtures("threads")
def test_the_package_and_the_control(tmp_path: Path) -> None:
    losses = {}
    for name in ("adan", "package", "adamw"):
        (run,) = significance.read_log(dry_run(tmp_path / name, "--set", f"optimizer={name}"))
        losses[name] = float(run.losses[8])
    assert losses["adan"] == pytest.approx(losses["package"], abs=0.01)  # the bfloat16 forward pass amplifies
    assert 4 < losses["adamw"] < 5.5


@pytest.mark.parametrize("words", [["--set", "lr=1"], ["--data", "nowhere"], ["--dry-run", "0"]])
def test_errors_are_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert train_gpt_adan.main(words) == 2
    assert re.fullmatch(r"error: .*\n", capsys.readouterr().err)


def test_the_full_size_needs_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(train_gpt_adan, "check_data", lambda *_: None)
    assert train_gpt_adan.main([]) == 2
    assert capsys.readouterr().err.startswith("error: no GPU: a step would take hours; --dry-run")


def test_processes_that_do_not_divide_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(InputError, match="3 processes do not divide the batch; use 1, 2, 4 or 8"):
        train_gpt_adan.Processes(Size())


@pytest.mark.usefixtures("threads")
def test_a_run_that_diverges_says_so(tmp_path: Path) -> None:
    train_gpt_adan.make_data(tmp_path, TINY, 2)
    model, report = GPT(TINY), (lambda line, log=True: None)
    model.logits = lambda tokens: torch.full((*tokens.shape, 256), torch.nan)  # type: ignore[method-assign]
    with pytest.raises(InputError, match="the loss is nan at step 0: it diverged; lower the factors"):
        train_gpt_adan.train(model, Settings(steps=2), TINY, tmp_path, train_gpt_adan.Processes(TINY), report)


@pytest.mark.slow
def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    script, losses = train_gpt_adan.__file__, []
    for name, words in (
        ("one", [script]),
        ("two", ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", script]),
    ):
        command = [sys.executable, *words, "--dry-run", "--out", str(tmp_path / name)]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        (path,) = (tmp_path / name).iterdir()
        losses.append(float(significance.read_log(path)[0].losses[8]))
    assert losses[0] == pytest.approx(losses[1], abs=0.01)
