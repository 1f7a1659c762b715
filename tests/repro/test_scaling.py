"""The learning rate that follows the batch."""

import json
import math
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from repro.errors import UserError
from repro.ledger import rows
from vision.train import main

TINY = [
    "+paper=large_batch/vit_s_adan", "+proxy=vit_large_batch",
    "epochs=1", "schedule.warmup_epochs=0", "schedule.cooldown_epochs=0",
    "model.kwargs.depth=1", "model.kwargs.embed_dim=16",
]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "batch_size", "lr"),
    [
        ("0.015,2048,sqrt", 2048, 0.015),
        ("0.015,2048,sqrt", 8192, 0.03),
        ("0.015,2048,sqrt", 512, 0.0075),
        ("8,8192,linear", 32768, 32.0),
        ("8,8192,linear", 1024, 1.0),
    ],
)
def test_rules(rule: str, batch_size: int, lr: float) -> None:
    config = OmegaConf.create({"batch_size": batch_size, "optimizer": {"lr": f"${{lr:{rule}}}"}})
    assert config.optimizer.lr == lr


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("${lr:0.1,256}", r"optimizer.lr: \$\{lr:0.1,256\}: write \$\{lr:BASE,BASE_BATCH,RULE\}, with"),
        ("${lr:0.1,256,cubic}", "cubic.*: write .* with the rule linear or sqrt"),
        ("${lr:0.1,0,sqrt}", r"\$\{lr:0.1,0,sqrt\}: write"),
        ("${lr:a,256,sqrt}", r"\$\{lr:a,256,sqrt\}: write"),
        ("${lr:true,256,sqrt}", r"\$\{lr:True,256,sqrt\}: write"),
    ],
)
def test_wrong_use(value: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        rows.load("imagenet/vit_s_150_i", [f"optimizer.lr={value}"])
    assert "raised while" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_batch(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command says it in a line, too."""
    monkeypatch.chdir(tmp_path)
    assert main([*TINY, "batch_size=0"]) == 2
    assert capsys.readouterr().err == (
        "error: optimizer.lr: ${lr:0.015,2048,sqrt} needs a batch_size of at least 1, not 0\n"
    )


@pytest.mark.recipe
def test_a_sweep_over_the_batch(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each batch is a run of its own, trains with its own rate, has it in its config, and continues."""
    monkeypatch.chdir(tmp_path)
    for message in ("result", "is finished"):
        assert main(["-m", *TINY, "batch_size=256,1024"]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert out.count(message) == 2
    (small, large) = sorted(Path("runs/vision").iterdir(), key=lambda path: "batch_size=256" not in path.name)
    for folder, batch_size in ((small, 256), (large, 1024)):
        lr = 0.015 * math.sqrt(32 * batch_size / 2048)  # for which the proxy's batch stands
        config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"), resolve=False)
        assert isinstance(config, dict)
        assert config["batch_size"] == batch_size
        assert config["optimizer"]["lr"] == lr
        first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
        assert 0 < first["lr"] <= lr
