"""llm/remax.py: its gradient is that of the expected reward, and rewards rise."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conversing import MODEL, SMALL, configured, write, write_pairs
from torch import Tensor

from llm import reward, rewards
from llm.remax import RULE, ReMax, likelihoods, main, rows, surrogate
from repro.errors import UserError

Run = Callable[..., tuple[int, str, str]]
REMAX = [
    *(word for word in SMALL if not word.startswith("epochs")), "completion_length=6", "steps=2",
    "eval_every=2", "optimizer.lr=0.005",
]  # fmt: skip


@pytest.fixture
def command(runner: Callable[..., Run]) -> Run:
    """The command, next to a folder of small conversations."""
    write_pairs(16)
    return runner(main)


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("baseline", [0.0, 0.7])
def test_the_gradient_is_that_of_the_expected_reward(beta: float, baseline: float) -> None:
    """Over all completions of up to three of three tokens, of which 0 ends them."""
    torch.manual_seed(0)
    prefixes = [p for n in range(3) for p in itertools.product((1, 2), repeat=n)]
    ends = [(*p, 0) for p in prefixes] + [(*p, t) for p in prefixes if len(p) == 2 for t in (1, 2)]
    place = {prefix: i for i, prefix in enumerate(prefixes)}
    table = torch.randn(len(prefixes), 3, dtype=torch.float64, requires_grad=True)
    origin = torch.randn(len(prefixes), 3, dtype=torch.float64)
    worth = torch.rand(len(ends), dtype=torch.float64)

    def chances(scores: Tensor, completion: tuple[int, ...]) -> Tensor:
        logs = scores.log_softmax(-1)
        return torch.stack([logs[place[completion[:i]], token] for i, token in enumerate(completion)])

    logs = torch.stack([chances(table, y).sum() for y in ends])
    before = torch.stack([chances(origin, y).sum() for y in ends])
    assert float(logs.detach().exp().sum()) == pytest.approx(1)
    expected = (logs.exp() * (worth - beta * (logs - before))).sum()
    (wanted,) = torch.autograd.grad(expected, table, retain_graph=True)

    made = torch.zeros_like(table)
    for number, completion in enumerate(ends):
        padded = torch.zeros(2, 1, 3, dtype=torch.float64)
        answer = torch.zeros(1, 3, dtype=torch.bool)
        answer[0, : len(completion)] = True
        chosen = torch.full((3,), -5.0, dtype=torch.float64)  # what is not the completion's must not count
        parts = chances(table, completion)
        chosen = torch.cat([parts, chosen[len(completion) :]])[None]
        padded[0, 0, : len(completion)] = chances(origin, completion)
        loss = surrogate(chosen, padded[0], answer, worth[number : number + 1] - baseline, beta)
        made -= (
            float(logs[number].detach().exp()) * torch.autograd.grad(loss.sum(), table, retain_graph=True)[0]
        )
    torch.testing.assert_close(made, wanted)


def test_the_loss_puts_rewards_and_likelihoods_together(
    command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    worth_of = lambda prompt, made, truth: len(made) + sum(map(ord, made + truth)) % 7.0  # noqa: E731
    monkeypatch.setitem(RULE, "overlap", worth_of)
    task = ReMax(configured("remax", *REMAX, "beta=0.5", "temperature=0.7"))
    torch.manual_seed(0)
    model = task.build_model().train()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))  # away from where it began
    batch = task.collate([task.sets["train"][i] for i in range(4)])
    torch.manual_seed(3)
    loss = task.loss(model, batch)
    assert model.training
    torch.manual_seed(3)
    seed = int(torch.randint(2**31, ()))
    drawn, greedy = task.play(model, batch, 0.7, seed), task.play(model, batch)
    assert drawn != greedy
    prompts, truths = rows(batch.prompts, batch.prompt_mask), rows(batch.references, batch.reference_mask)
    expected = []
    for i in range(4):
        worth = [worth_of("", task.text(y[i]), task.text(truths[i])) for y in (drawn, greedy)]
        ids = torch.tensor([prompts[i] + drawn[i]])
        logs, then = (
            (each(input_ids=ids).logits[0, len(prompts[i]) - 1 : -1] / 0.7).log_softmax(-1)[
                range(len(drawn[i])), drawn[i]
            ]
            for each in (model, task.origin)
        )
        gaps = (logs - then).detach()
        expected += [-sum((worth[0] - worth[1] - 0.5 * gaps[t:].sum()) * logs[t] for t in range(len(gaps)))]
    torch.testing.assert_close(loss, torch.stack(expected).mean(), rtol=1e-4, atol=1e-5)
    torch.manual_seed(3)
    plain = ReMax(configured("remax", *REMAX, "baseline=false", "beta=0.5", "temperature=0.7"))
    plain.origin, plain.shape = task.origin, task.shape
    assert float(plain.loss(model, batch).detach()) != float(loss.detach())


def test_what_is_drawn_belongs_to_the_prompt(command: Run) -> None:
    """So that several processes measure what one does."""
    task = ReMax(configured("remax", *REMAX))
    model = task.build_model().eval()
    data = task.valid_data()
    sums: list[dict[str, float]] = []
    for size in (12, 3):
        whole: dict[str, Any] = {}
        for part in task.eval_plan(data, size, 1, 0):
            with torch.no_grad():
                measures, _ = task.evaluate(model, task.collate([data[i] for i in part]))
            whole = {key: whole.get(key, 0) + float(value) for key, value in measures.items()}
        sums.append(whole)
    assert sums[0] == pytest.approx(sums[1], rel=1e-4, abs=1e-5)
    assert sums[0]["valid_kl"] == 0  # it has not moved
    shares = [task.eval_plan(data, 3, 2, rank) for rank in (0, 1)]
    assert sorted(i for share in shares for part in share for i in part) == list(range(12))


def measured(task: ReMax, model: Any) -> dict[str, float]:
    data = task.valid_data()
    with torch.no_grad():
        sums, count = task.evaluate(model.eval(), task.collate([data[i] for i in range(len(data))]))
    return task.metrics(sums, count)


def test_rewards_rise(command: Run) -> None:
    """Any sign of the answer is worth something, so that a policy from scratch finds some."""
    answers = [{"prompt": prompt, "completion": "! ? : ; , . ( ) [ ] { } + - * / < >"} for prompt in "ab" * 8]
    for split in ("train", "validation"):
        write(Path(f"pairs/{split}.jsonl"), answers)
    long = ["steps=20", "eval_every=20", "beta=0.001", "batch_size=16", "optimizer.lr=0.03"]
    task = ReMax(configured("remax", *REMAX, *long))
    torch.manual_seed(0)
    before = measured(task, task.build_model())
    status, _, err = command(*REMAX, *long)
    assert status == 0, err
    summary = json.loads(Path("runs/remax/x/summary.json").read_text())
    assert summary["best"]["valid_reward"] > 1.5 * before["valid_reward"]
    assert summary["best"]["valid_kl"] > 0.01 > before["valid_kl"]
    assert 1 <= summary["best"]["valid_length"] <= 6
    assert len(summary["examples"]) == 4


@pytest.mark.recipe
def test_below_adapters_the_policy_stays_what_it_was(command: Run) -> None:
    task = ReMax(configured("remax", *REMAX, "lora.rank=2"))
    model = task.build_model()
    assert task.origin is None
    ids = torch.randint(5, 200, (2, 7))
    before = task.scores(model.eval(), ids).detach()
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p)
    assert not torch.allclose(task.scores(model, ids), before)
    torch.testing.assert_close(task.scores_before(model.train(), ids), before)
    assert model.training
    assert not torch.allclose(task.scores(model.eval(), ids), before)  # they are there again


@pytest.mark.recipe
def test_a_reward_model_judges(command: Run, runner: Any, capfd: Any) -> None:
    assert reward.main([*SMALL, "epochs=1"]) == 0
    judged = [*REMAX, "reward.name=model", "reward.checkpoint=runs/reward/x"]
    task = ReMax(configured("remax", *judged))
    batch = task.collate([task.sets["train"][i] for i in range(3)])
    truths = rows(batch.references, batch.reference_mask)
    chosen = reward.RewardModelling(configured("reward", *SMALL))
    ids, _ = chosen.collate([chosen.sets["train"][i] for i in range(3)])
    assert task.judge is not None
    with torch.no_grad():
        expected = task.judge(input_ids=ids[:3]).logits[:, 0]
    torch.testing.assert_close(task.rewards(batch, truths), expected)
    bound = float(expected.abs().min()) / 2
    clipped = ReMax(configured("remax", *judged, f"reward.clip={bound}"))
    torch.testing.assert_close(clipped.rewards(batch, truths), expected.clamp(-bound, bound))
    status, _, err = command(*judged, "tokenizer=bpe", "tokenizer.vocab_size=300")
    assert status == 2
    assert "reward.checkpoint=runs/reward/x: has a different tokenizer from" in err


def test_likelihoods() -> None:
    scores = torch.randn(2, 3, 5)
    ids = torch.randint(5, (2, 4))
    expected = scores.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(likelihoods(scores, ids), expected)


def test_rules() -> None:
    assert rewards.overlap("", "a b b", "b c") == pytest.approx(2 * 1 / 5)
    assert rewards.overlap("", "x.y()", "y ( ) x .") == 1
    assert rewards.overlap("", "", "") == 0
    head = 'def f(a):\n    """Doc."""\n'
    for completion, share in (
        ("    return a\n", 1), ("    return a\n    +\n", 0.5), ("return a", 0), ("", 0), ("\n\n", 0),
        ("    x = '\\q' is 1", 1), ("    x = 1\nf(2)\n)\n", 2 / 3),
    ):  # fmt: skip
        assert rewards.parses(head, completion, "") == pytest.approx(share), completion


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("beta=-1", "beta=-1.0: must be at least 0"),
        ("temperature=0", "temperature=0.0: must be above 0"),
        (
            "completion_length=32",
            "completion_length=32: must be at least 1, and below data.sequence_length=32",
        ),
        ("completion_length=31", "all train prompts have more than the 1 tokens"),
        ("reward.name=none", "reward.name=none: must be one of rule, model"),
        ("reward.rule=none", "reward.rule=none: must be one of overlap, parses"),
        ("reward.name=model", "reward.checkpoint is not set: reward.name=model needs a run of llm/reward.py"),
        ("reward.clip=0", "reward.clip=0.0: must be above 0"),
    ],
)
def test_input_that_cannot_work(command: Run, argument: str, message: str) -> None:
    status, _, err = command(*REMAX, argument)
    assert status == 2
    assert message in err
    assert len(err.splitlines()) == 1


def test_the_default_is_small() -> None:
    assert configured("remax", *MODEL).reward.name == "rule"


@pytest.mark.usefixtures("command")
def test_sophia_is_refused() -> None:
    task = ReMax(configured("remax", *REMAX))
    batch = task.collate([task.sets["train"][0]])
    with pytest.raises(UserError, match="optimizer=sophia: the recipe remax has no class scores"):
        task.logits(task.build_model(), batch)
