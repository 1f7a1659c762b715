"""Reinforcement learning of a language model from rewards, by ReMax (arXiv 2310.10505):

    python llm/remax.py model.checkpoint=RUN reward.name=model reward.checkpoint=RUN data.root=PATH [...]

The first run is one of llm/finetune.py, the second of llm/reward.py. Without further words a small model from
scratch is rewarded for words that are in the true bodies of functions of Python's library.
"""

import copy
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from llm import models, pretrained
from llm import rewards as rules
from llm.config.remax import RULES, RemaxConfig
from llm.conversations import Example, Examples, Row, collate, encode
from llm.finetune import SHOWN, Finetuning
from llm.generate import pad_left
from repro.errors import UserError
from repro.train.cli import entry_point
from repro.train.run_folder import run_name
from repro.train.trainer import train

RULE = dict(zip(RULES, (rules.overlap, rules.parses), strict=True))


class Prompts(Examples):
    """The questions of rows; those that leave no room for an answer are left out."""

    def __init__(self, rows: Sequence[Row], tokenizer: Any, max_prompt_length: int, what: str) -> None:
        found = [encode(row, "completion", tokenizer, sys.maxsize, needs_answer=False).last() for row in rows]
        self.prompts = [pair for pair in found if len(pair[0]) <= max_prompt_length]
        self.left_out = len(found) - len(self.prompts)
        self.lengths = np.array([len(prompt) for prompt, _ in self.prompts])
        if not self.prompts:
            raise UserError(
                f"data.sequence_length: all {what} prompts have more than the {max_prompt_length} tokens "
                "that completion_length leaves of it; raise it"
            )

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> Any:
        """Return the tokens of a question and those of its answer in the data, and its number."""
        return (*self.prompts[index], index)


class ReMax(Finetuning):
    """A policy that is rewarded for whole completions. No network estimates their value.

    For every prompt x a completion y is drawn, and another, g, is the likeliest token at each place. With
    k_t = log pi(y_t) - log pi_0(y_t), pi_0 being the policy that training began with, the gradient is that of

        - sum_t (r(x, y) - r(x, g) - beta sum_{s >= t} k_s) log pi(y_t | x, y_<t),

    the factor in brackets held fixed, in the mean over prompts. Its expectation is the gradient of the
    expected r - beta KL(pi || pi_0): g depends on x alone, and what came before t does not depend on y_t.
    The penalty is thus one per token, added up from there to the end of the completion; g has none.
    """

    name = "remax"
    schema = RemaxConfig
    samples = "prompts"
    metric = "valid_reward"

    def __init__(self, config: RemaxConfig, synthetic: bool = False) -> None:
        self.options = config
        super().__init__(config, synthetic)
        self.per_sample = 1
        self.judge = None
        if config.reward.name != "rule" and not synthetic:
            self.judge = self.read_judge(str(config.reward.checkpoint))

    def read_judge(self, checkpoint: str) -> PreTrainedModel:
        """Return the reward model."""
        if pretrained.read_tokenizer(checkpoint).get_vocab() != self.tokenizer.get_vocab():
            raise UserError(
                f"reward.checkpoint={checkpoint}: has another tokenizer than "
                f"model.checkpoint={self.config.model.get('checkpoint')}; train both from one model"
            )
        return pretrained.read_scorer(checkpoint, self.pad).eval().requires_grad_(False)

    def encoded(self, rows: Sequence[Row], split: str) -> Any:
        """Return the questions of a split as tokens."""
        max_prompt_length = self.config.data.sequence_length - self.options.completion_length
        return Prompts(rows, self.tokenizer, max_prompt_length, split)

    def build_model(self) -> nn.Module:
        """Return the policy, and keep a copy of it as it was; under adapters it stays what it was."""
        model = super().build_model()
        self.origin = None if self.config.lora.rank else copy.deepcopy(model).eval().requires_grad_(False)
        return model

    def eval_plan(self, data: Any, batch_size: int, processes: int, rank: int) -> Sequence[Sequence[int]]:
        """Return batches of prompts that follow each other: what is drawn for each depends on its number."""
        numbers = range(len(data))
        return [numbers[begin : begin + batch_size] for begin in range(0, len(data), batch_size)][
            rank::processes
        ]

    def collate(self, samples: list[Any]) -> list[Tensor]:
        """Return questions [batch, longest], padded on the left, and masks; the data's answers; numbers."""
        questions, answers, numbers = zip(*samples, strict=True)
        return [*pad_left(questions, self.pad), *pad_left(answers, self.pad), torch.tensor(numbers)]

    def synthetic_batch(self, n: int) -> list[Tensor]:
        """Return questions and answers of full length, as `collate` does; `loss` needs a tokenizer, too."""
        answer = self.options.completion_length
        shapes = (n, self.config.data.sequence_length - answer), (n, answer)
        words = self.vocab_size or self.config.model["vocab_size"]
        pairs = [(torch.randint(words, shape), torch.ones(shape).long()) for shape in shapes]
        return [*pairs[0], *pairs[1], torch.arange(n)]

    def num_items(self, batch: Any) -> float:
        """Return the number of prompts."""
        return float(len(batch[0]))

    def flops(self, batch: Any) -> float:
        """Return the operations of the pass that has gradients; those of drawing are not in it."""
        rows, length = batch[0].shape
        length += self.options.completion_length
        return models.flops(self.shape, rows * length, length)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return what has ReMax's gradient, see the class; the number itself measures nothing."""
        drawn = self.play(model, batch, self.options.temperature, int(torch.randint(2**31, ())))
        rewards = self.rewards(batch, drawn)
        if self.options.baseline:
            rewards = rewards - self.rewards(batch, self.play(model, batch))
        ids, answer = self.joined(batch, drawn, self.pad)
        chosen = likelihoods(self.scores(model, ids), ids)
        before = likelihoods(self.scores_before(model, ids), ids)
        return surrogate(chosen, before, answer[:, 1:], rewards, self.options.beta).mean()

    def play(self, model: nn.Module, batch: Any, temperature: float = 0.0, seed: int = 0) -> list[list[int]]:
        """Return a completion of each question, as tokens; the likeliest tokens at temperature 0."""
        prompts = rows(*batch[:2])
        first = int(batch[4][0])
        longest = self.options.completion_length
        return self.answers(
            pretrained.bare(model), prompts, longest, temperature=temperature, seed=seed, first=first
        )

    @torch.no_grad()
    def rewards(self, batch: Any, drawn: list[list[int]]) -> Tensor:
        """Return what completions are worth [batch]."""
        options, device = self.options.reward, batch[0].device
        if self.judge is None:
            asked, wanted = rows(*batch[:2]), rows(*batch[2:4])
            numbers = [
                RULE[options.rule](self.text(prompt), self.text(made), self.text(truth))
                for prompt, made, truth in zip(asked, drawn, wanted, strict=True)
            ]
            return torch.tensor(numbers, device=device)
        ids, _ = self.joined(batch, drawn, self.pad)
        scores: Tensor = self.judge.to(device)(input_ids=ids, use_cache=False).logits[:, 0].float()
        return scores if options.clip is None else scores.clamp(-options.clip, options.clip)

    def joined(self, batch: Any, drawn: list[list[int]], pad: int) -> tuple[Tensor, Tensor]:
        """Return questions with completions [batch, longest], and which tokens are the completions'."""
        made = [
            Example(np.array(prompt + answer), np.arange(len(prompt + answer)) >= len(prompt))
            for prompt, answer in zip(rows(*batch[:2]), drawn, strict=True)
        ]
        ids, answer = (tensor.to(batch[0].device) for tensor in collate(made, pad))
        return ids, answer

    def scores(self, model: nn.Module, ids: Tensor) -> Tensor:
        """Return the scores of the tokens after the first [batch, length - 1, vocabulary]."""
        scores: Tensor = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        return scores / self.options.temperature

    @torch.no_grad()
    def scores_before(self, model: nn.Module, ids: Tensor) -> Tensor:
        """Return the same of the policy that training began with."""
        if self.origin is not None:
            return self.scores(self.origin.to(ids.device), ids)
        inner = pretrained.bare(model)
        training = inner.training
        inner.eval()
        with pretrained.without_adapters(inner):
            scores = self.scores(inner, ids)
        inner.train(training)
        return scores

    def training_metrics(self, loss: float) -> dict[str, float]:
        """Return the number whose gradient is followed."""
        return {"train_loss": loss}

    def evaluate(self, model: nn.Module, batch: Any) -> tuple[dict[str, Tensor], int | Tensor]:
        """Return sums over prompts: of rewards, drawn and greedy, of divergences and lengths."""
        drawn = self.play(model, batch, self.options.temperature, self.config.seed)
        ids, answer = self.joined(batch, drawn, self.pad)
        now, then = self.scores(model, ids).log_softmax(-1), self.scores_before(model, ids).log_softmax(-1)
        divergence = (now.exp() * (now - then)).sum(-1)[answer[:, 1:]].sum()
        sums = {
            "reward": self.rewards(batch, drawn).sum(),
            "reward_greedy": self.rewards(batch, self.play(model, batch)).sum(),
            "kl": divergence,
            "length": answer.sum(),
        }
        return {f"valid_{key}": value for key, value in sums.items()}, len(drawn)

    def metrics(self, sums: dict[str, Tensor], count: float) -> dict[str, float]:
        """Return means over prompts; of the divergence in nats per completion, of the length in tokens."""
        return {key: float(value) / count for key, value in sums.items()}

    def examples(self, model: nn.Module) -> list[str]:
        """Return questions, what the policy draws, and what that is worth."""
        chosen = np.linspace(0, len(self.sets["valid"]) - 1, min(SHOWN, len(self.sets["valid"]))).astype(int)
        device, shown = next(model.parameters()).device, []
        for index in chosen.tolist():
            batch = self.move(self.collate([self.sets["valid"][index]]), device)
            drawn = self.play(model, batch, self.options.temperature, self.config.seed)
            worth = float(self.rewards(batch, drawn))
            shown.append(f"{self.text(rows(*batch[:2])[0])!r} -> {self.text(drawn[0])!r}: {worth:.3g}")
        return shown


def rows(ids: Tensor, mask: Tensor) -> list[list[int]]:
    """Return the tokens of each row that its mask has."""
    return [row[kept].tolist() for row, kept in zip(ids.cpu(), mask.bool().cpu(), strict=True)]


def likelihoods(scores: Tensor, ids: Tensor) -> Tensor:
    """Return the log-likelihood of each token after the first [batch, length - 1]."""
    return -F.cross_entropy(scores.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view_as(ids[:, 1:])


def surrogate(chosen: Tensor, before: Tensor, answer: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """Return for each completion what has ReMax's gradient [batch].

    Args:
        chosen: log-likelihoods of tokens [batch, length], with gradients.
        before: those by the policy that training began with.
        answer: which tokens are the completion's [batch, length].
        rewards: of the completions, less the baseline [batch].
        beta: weight of the divergence.
    """
    gaps = (chosen - before).detach() * answer
    ahead = gaps.flip(1).cumsum(1).flip(1)  # from each token to the end
    return -((rewards[:, None] - beta * ahead) * answer * chosen).sum(1)


RECIPE = ReMax  # see repro.ledger.recipes


@entry_point("remax", RemaxConfig)
def main(config: RemaxConfig, overrides: list[str]) -> None:
    """Train as the command line says."""
    train(ReMax(config), config, config.run.name or run_name(overrides))


if __name__ == "__main__":
    sys.exit(main())
