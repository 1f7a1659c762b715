"""The readers against the released logs themselves: every record, and the figures known of each file."""

import math
from functools import cache
from pathlib import Path

import pytest

from repro.logs import read
from repro.logs.fairseq import read_config
from repro.logs.log import Log, Source
from repro.logs.megatron import read_args as read_gpt_args
from repro.logs.timm import BCE, CE
from repro.logs.timm import read_args as read_timm_args

TIMM = "CV/timm/exp_results"
MAE = "CV/MAE/exp_results/MAE"
BERT = "NLP/BERT/exp_results/pretrain"
TXL = "NLP/Transformer-XL/exp_results"

# file: number of epochs, best top-1 and its epoch, and at the end top-1, top-5, eval loss, train loss
EPOCHS = {
    f"{TIMM}/ViT/small/summary_vit-s_150-I.csv": (170, 80.166, 156, 80.108, 94.956, 0.84042, 0.003319),
    f"{TIMM}/ViT/small/summary_vit-s_150.csv": (160, 79.61, 153, 79.59, 94.716, 0.85408, 0.003807),
    f"{TIMM}/ViT/small/summary_vit-s_300-I.csv": (310, 81.124, 296, 81.088, 95.286, 0.83085, 0.003342),
    f"{TIMM}/ViT/small/summary_vit-s_300.csv": (310, 80.92, 302, 80.872, 95.354, 0.80716, 0.003677),
    f"{TIMM}/ViT/base/summary_vit-B_150.csv": (160, 81.662, 159, 81.662, 95.636, 0.81781, 2.727244),
    f"{TIMM}/ViT/base/summary_vit-B_300.csv": (310, 82.296, 307, 82.176, 95.816, 0.80708, 2.689242),
    f"{TIMM}/ViT/base/summary_vit-B_300_T.csv": (310, 82.578, 305, 82.552, 96.084, 0.78247, 2.646794),
    f"{TIMM}/ResNet/Res50/summary_res50_100.csv": (110, 78.176, 106, 78.07, 93.814, 0.90194, 0.002823),
    f"{TIMM}/ResNet/Res50/summary_res50_200.csv": (210, 79.65, 209, 79.65, 94.514, 0.8589, 0.002461),
    f"{TIMM}/ResNet/Res50/summary_res50_300.csv": (310, 80.212, 309, 80.212, 94.768, 0.84692, 0.002348),
    f"{TIMM}/ResNet/Res101/summary_res50_200.csv": (210, 79.65, 209, 79.65, 94.514, 0.8589, 0.002461),
    f"{TIMM}/ResNet/Res101/summary_res101_100.csv": (110, 80.006, 107, 79.86, 94.632, 0.83866, 0.002573),
    f"{TIMM}/ResNet/Res101/summary_res101_200.csv": (210, 81.55, 199, 81.454, 95.39, 0.78961, 0.002205),
    f"{TIMM}/ResNet/Res101/summary_res101_300.csv": (310, 81.958, 305, 81.926, 95.632, 0.78595, 0.002206),
    f"{TIMM}/ConvNext/small/summary_cvnext_150.csv": (160, 81.716, 159, 81.716, 95.87, 0.81747, 2.962249),
    f"{TIMM}/ConvNext/small/summary_cvnext_300.csv": (310, 82.452, 287, 82.442, 95.812, 0.80185, 2.949964),
    f"{MAE}/base/log_base_ft.txt": (100, 83.8, 99, 83.8, 96.79, 0.73039, 2.65648),
    f"{MAE}/large/log_large_ft.txt": (50, 85.853, 46, 85.823, 97.581, 0.64278, None),
}
# file: repeated epochs, first and last training loss, lowest one and its epoch
PRETRAINING = {
    f"{MAE}/base/log_base_pretrain.txt": (0, 1.02987, 0.407011, 0.406965, 788),
    f"{MAE}/large/log_large_pretrain.txt": (1, 1.03737, 0.395229, 0.395229, 799),
}
# file: lines with records of training, epoch and evaluation; first and last step; notes of overflow
FAIRSEQ = {
    f"{BERT}/hydra_train-adan.log": (4037, 15, 19, 200, 807_400, 318),
    f"{BERT}/hydra_train-adan-2.log": (1000, 5, 4, 800_200, 1_000_000, 73),
    f"{BERT}/hydra_train-adam.log": (5000, 20, 23, 200, 1_000_000, 415),
}
# file: records of training and evaluation, best perplexity and its step, test perplexity, median ms per step
TRANSFORMER_XL = {
    f"{TXL}/log-50k.txt": (250, 12, 25.471, 48_000, 26.217, 671.7),
    f"{TXL}/log-100k.txt": (500, 25, 23.503, 100_000, 24.264, 706.9),
    f"{TXL}/log-200k.txt": (1000, 50, 22.721, 196_000, 23.511, 431.0),
    f"{TXL}/log-adam.txt": (1000, 50, 23.395, 196_000, 24.241, 382.9),
}


def open_log(released: Path, *files: str) -> Log:
    """Read released files, each of which must be sound in every line."""
    for file in files:
        if not (released / file).is_file():
            pytest.skip(f"{file} is not in the local copy of the released files")
    paths = tuple(released / file for file in files)
    log = read_once(paths)
    assert sum(log.lines.values()) == sum(path.read_bytes().count(b"\n") for path in paths)
    return log


@cache
def read_once(paths: tuple[Path, ...]) -> Log:
    return read(paths, strict=True)


def counts(log: Log) -> dict[str, int]:
    return {str(record): int(count) for record, count in log.table["record"].value_counts().items()}


def test_every_log_is_in_a_table_here(released: Path) -> None:
    logs = {
        str(path.relative_to(released)) for path in released.rglob("*") if path.suffix in (".csv", ".log")
    }
    logs |= {str(path.relative_to(released)) for path in released.rglob("log*.txt")}
    assert logs <= {*EPOCHS, *PRETRAINING, *FAIRSEQ, *TRANSFORMER_XL}


@pytest.mark.parametrize("file", EPOCHS)
def test_evaluations_by_epoch(released: Path, file: str) -> None:
    log = open_log(released, file)
    epochs, best, best_epoch, top1, top5, eval_loss, train_loss = EPOCHS[file]
    assert counts(log) == {"epoch": epochs}
    assert log.table["epoch"].tolist() == list(range(epochs))
    series = log.series("eval_top1").round(3)
    assert (series.max(), series.idxmax(), series.iloc[-1]) == (best, best_epoch, top1)
    last = log.table.iloc[-1]
    assert last["eval_top5"] == pytest.approx(top5, abs=5e-4)
    assert last["eval_loss"] == pytest.approx(eval_loss, abs=5e-6)
    if train_loss is not None:
        assert last["train_loss"] == pytest.approx(train_loss, abs=5e-6)


@pytest.mark.parametrize("file", [file for file in EPOCHS if file.startswith(TIMM)])
def test_timm_with_its_arguments(released: Path, file: str) -> None:
    log = open_log(released, file)
    resumed = {"summary_vit-s_150.csv": 38, "summary_cvnext_150.csv": 74}.get(Path(file).name)
    assert log.resumes == (resumed is not None)
    if resumed is not None:
        assert log.table.set_index("epoch")["segment"].diff().idxmax() == resumed
    if file.endswith("Res101/summary_res50_200.csv"):
        assert log.config == {}
        return
    plain = log.units["train_loss"] == BCE
    assert plain or log.units["train_loss"] == CE
    assert plain == (log.table["train_loss"].iloc[0] < 1)
    assert any("170 epochs" in oddity for oddity in log.oddities) == ("vit-s_150-I" in file)
    assert any("(EMA)" in oddity for oddity in log.oddities) == ("cvnext_300" in file)
    assert len(log.oddities) == ("vit-s_150-I" in file) + ("cvnext_300" in file) + log.resumes


@pytest.mark.parametrize(("model", "until"), [("small/summary_vit-s", 37), ("base/summary_vit-B", 59)])
def test_runs_that_share_their_beginning(released: Path, model: str, until: int) -> None:
    a, b = (open_log(released, f"{TIMM}/ViT/{model}_{n}.csv").series("train_loss") for n in (150, 300))
    same = (a == b[: len(a)]).to_numpy()
    assert same[: until + 1].all()
    assert not same[until + 1]


@pytest.mark.parametrize("file", PRETRAINING)
def test_mae_pretraining(released: Path, file: str) -> None:
    log = open_log(released, file)
    repeated, first, last, lowest, lowest_epoch = PRETRAINING[file]
    assert log.lines == {"record": 800 + repeated}
    assert log.repeated == log.resumes == repeated
    loss = log.series("train_loss")
    assert loss.index.tolist() == list(range(800))
    assert (loss.iloc[0], loss.iloc[-1], loss.min()) == pytest.approx((first, last, lowest), rel=5e-6)
    assert loss.idxmin() == lowest_epoch


@pytest.mark.parametrize(
    ("file", "parameters"), [("base/log_base_ft", 86_567_656), ("large/log_large_ft", 304_326_632)]
)
def test_mae_states_its_size(released: Path, file: str, parameters: int) -> None:
    assert open_log(released, f"{MAE}/{file}.txt").config == {"parameters": parameters}


@pytest.mark.parametrize("file", FAIRSEQ)
def test_fairseq(released: Path, file: str) -> None:
    log = open_log(released, file)
    train, epochs, evals, first, last, overflows = FAIRSEQ[file]
    assert counts(log) == {"train": train, "epoch": epochs, "eval": evals}
    assert log.of("train")["step"].tolist() == list(range(first, last + 1, 200))
    assert sum(event["what"] == "overflow" for event in log.events) == overflows
    assert ("clip" in log.table) == ("adam" not in file)
    assert log.config["parameters"] == 209_714_265
    assert log.config["iterations_per_epoch"] == 51_488
    assert log.config["examples"] == {"train": 214_960_826, "valid": 1_066_112}
    assert log.config["optimization"]["clip_norm"] == (0.0 if "adam" in file else 5.0)


def test_fairseq_ends(released: Path) -> None:
    done = [
        [event["seconds"] for event in open_log(released, file).events if event["what"] == "done"]
        for file in FAIRSEQ
    ]
    assert done == [[], [65611.0], [299092.2]]


def test_fairseq_parts_of_one_run(released: Path) -> None:
    log = open_log(released, f"{BERT}/hydra_train-adan.log", f"{BERT}/hydra_train-adan-2.log")
    assert counts(log) == {"train": 5000, "epoch": 20, "eval": 23}
    assert log.repeated == 37
    assert log.resumes == 1
    train = log.of("train").set_index("step")
    assert train.index.tolist() == list(range(200, 1_000_001, 200))
    assert (train["file"] == 1).equals(train.index.to_series() > 800_000)
    assert log.of("epoch")["epoch"].tolist() == list(range(1, 21))
    evaluated = log.series("eval_loss")
    assert [evaluated[50_000], evaluated[500_000], evaluated[1_000_000]] == [2.572, 2.069, 1.777]
    assert log.series("eval_ppl").iloc[-1] == 3.43
    assert log.of("epoch")["train_loss"].iloc[-1] == 1.866


def test_fairseq_adam(released: Path) -> None:
    log = open_log(released, f"{BERT}/hydra_train-adam.log")
    evaluated = log.series("eval_loss")
    assert [evaluated[50_000], evaluated[500_000], evaluated[1_000_000]] == [2.699, 1.998, 1.848]
    assert {257_341, 514_686, 772_013} < set(evaluated.index)
    assert log.of("epoch")[["train_loss", "train_ppl"]].iloc[-1].tolist() == [1.955, 3.88]


@pytest.mark.parametrize("file", TRANSFORMER_XL)
def test_transformer_xl(released: Path, file: str) -> None:
    log = open_log(released, file)
    train, evals, best, best_step, test, ms = TRANSFORMER_XL[file]
    assert counts(log) == {"train": train, "eval": evals, "test": 1}
    assert log.of("train")["step"].tolist() == list(range(200, 200 * train + 1, 200))
    ppl = log.series("eval_ppl")
    assert (ppl.min(), ppl.idxmin()) == (best, best_step)
    assert log.series("test_ppl").to_dict() == {best_step: test}
    assert log.of("train")["ms_per_step"].median() == pytest.approx(ms, rel=0.001)
    for side in ("train", "eval", "test"):
        rows = log.of(side)
        assert rows[f"{side}_ppl"].map(math.log).sub(rows[f"{side}_loss"]).abs().max() < 0.0051
    epochs = log.of("train")
    assert (epochs["step"] - epochs["batch"]).eq((epochs["epoch"] - 1) * 11_470).all()
    assert log.config["max_step"] == 200 * train
    assert log.config["opt_betas"] == [0.9, 0.9, 0.999] or "adam" in file
    assert log.config["n_all_param"] == 151_107_538
    # within a tenth: the clock stands still between the last evaluation and the end
    assert log.series("seconds").iloc[-1] == pytest.approx(epochs["ms_per_step"].sum() / 5, rel=0.1)


@pytest.mark.parametrize("run", ["adan", "adam"])
def test_fairseq_configurations_agree(released: Path, run: str) -> None:
    config = read_config(Source(released / f"{BERT}/full_config-{run}.yaml"))
    assert "hydra" not in config
    logged = open_log(released, f"{BERT}/hydra_train-{run}.log").config
    for part in ("dataset", "optimization", "checkpoint", "lr_scheduler", "optimizer", "task", "model"):
        for key, value in config[part].items():
            if value != "???":
                assert logged[part][key] == value, (part, key)


def test_settings(released: Path) -> None:
    files = sorted((released / TIMM).rglob("args_*.yaml"))
    assert {len(read_timm_args(Source(path))) for path in files} == {104, 105, 106}
    args = read_gpt_args(Source(released / "gpt2/checkpoints/gpt2-adan/gpt_args"))
    assert len(args) == 21
    assert (args["weight_decay"], args["fp16"], args["optimizer"]) == (0.05, True, "adan")
