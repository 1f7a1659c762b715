"""Reinforcement learning of a language model from rewards, by ReMax (arXiv 2310.10505).

    python llm/remax.py optimizer=adamw steps=30
    python llm/remax.py model.checkpoint=RUN reward.name=model reward.checkpoint=RUN data.root=PATH

The first RUN is one of llm/finetune.py, the second of llm/reward.py. Without arguments, a small model learns
from scratch, rewarded for words that occur in the true function bodies of Python's library.
"""

import sys

from llm.config.remax import RULES, RemaxConfig
from repro.train.command import command

main = command("remax", RemaxConfig, "llm.remax", __doc__)

if __name__ == "__main__":
    sys.exit(main())  # before the imports that take seconds

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from llm import conversations, models, pretrained
from llm import rewards as rules
from llm.conversations import Example, Examples, Row, collate, encode
from llm.finetune import SHOWN, ConversationTask
from llm.generate import pad_left
from repro.errors import UserError
from repro.train.data import in_order

RULE = dict(zip(RULES, (rules.overlap, rules.parses), strict=True))


class Prompts(Examples):
    """The prompts of rows, without those that leave no room for an answer."""

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
        """Return the tokens of a prompt, those of its answer in the data, and its number."""
        return (*self.prompts[index], index)


class Batch(NamedTuple):
    """Prompts with the answers that the data have for them, both padded on the left to the longest.

    prompts, references: tokens [batch, length], each with a length of its own; int64.
    prompt_mask, reference_mask: of the same shapes, 0 at padding, else 1; int64.
    numbers: of the prompts in their set [batch], int64.
    """

    prompts: Tensor
    prompt_mask: Tensor
    references: Tensor
    reference_mask: Tensor
    numbers: Tensor


class ReMax(ConversationTask):
    """A policy rewarded for whole completions, without a value network.

    For every prompt x, a completion y is sampled, and another, g, is decoded greedily. With
    k_t = log pi(y_t) - log pi_0(y_t), where pi_0 is the initial policy, the gradient is that of

        - sum_t (r(x, y) - r(x, g) - beta sum_{s >= t} k_s) log pi(y_t | x, y_<t),

    averaged over prompts, with the factor in brackets held fixed. Its expectation is the gradient of
    -E[r] + beta KL(pi || pi_0): g depends only on x, and tokens before t do not depend on y_t. So each token
    is penalised for the divergences from there to the end of the completion; g has no penalty.
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
        if models.read_tokenizer(checkpoint).get_vocab() != self.tokenizer.get_vocab():
            raise UserError(
                f"reward.checkpoint={checkpoint}: has a different tokenizer from "
                f"model.checkpoint={self.config.model.get('checkpoint')}; train both from one model"
            )
        return pretrained.read_scorer(checkpoint, self.pad).eval().requires_grad_(False)

    def encoded(self, rows: Sequence[Row], split: str) -> Any:
        """Return the prompts of a split as tokens."""
        max_prompt_length = self.config.data.sequence_length - self.options.completion_length
        return Prompts(rows, self.tokenizer, max_prompt_length, split)

    def build_model(self) -> nn.Module:
        """Return the policy, and keep a copy of the initial one, which adapters leave unchanged."""
        model = super().build_model()
        self.origin = None if self.config.lora.rank else copy.deepcopy(model).eval().requires_grad_(False)
        return model

    def eval_plan(self, data: Any, batch_size: int, processes: int, rank: int) -> Sequence[Sequence[int]]:
        """Return batches of consecutive prompts, as the completion drawn for each depends on its number."""
        return in_order(len(data), batch_size)(0)[rank::processes]

    def collate(self, samples: list[Any]) -> Batch:
        """Return a batch of the items of Prompts."""
        questions, answers, numbers = zip(*samples, strict=True)
        return Batch(*pad_left(questions, self.pad), *pad_left(answers, self.pad), torch.tensor(numbers))

    def synthetic_batch(self, n: int) -> Batch:
        """Return n random prompts and answers of full length; `loss` also needs a tokenizer."""
        answer = self.options.completion_length
        shapes = (n, self.config.data.sequence_length - answer), (n, answer)
        words = self.vocab_size or self.config.model["vocab_size"]
        pairs = [(torch.randint(words, shape), torch.ones(shape).long()) for shape in shapes]
        return Batch(*pairs[0], *pairs[1], torch.arange(n))

    def num_items(self, batch: Batch) -> float:
        """Return the number of prompts."""
        return float(len(batch.prompts))

    def flops(self, batch: Batch) -> float:
        """Return the operations of the forward pass that has gradients, without those of sampling."""
        rows, length = batch.prompts.shape
        length += self.options.completion_length
        return models.flops(self.shape, rows * length, length)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return a scalar that has ReMax's gradient (see the class); its value measures nothing."""
        drawn = self.play(model, batch, self.options.temperature, int(torch.randint(2**31, ())))
        rewards = self.rewards(batch, drawn)
        if self.options.baseline:
            rewards = rewards - self.rewards(batch, self.play(model, batch))
        ids, answer = self.joined(batch, drawn)
        chosen = likelihoods(self.scores(model, ids), ids)
        before = likelihoods(self.scores_before(model, ids), ids)
        return surrogate(chosen, before, answer[:, 1:], rewards, self.options.beta).mean()

    def play(
        self, model: nn.Module, batch: Batch, temperature: float = 0.0, seed: int = 0
    ) -> list[list[int]]:
        """Return the tokens of a completion of each prompt; the most likely tokens at temperature 0."""
        prompts, first = rows(batch.prompts, batch.prompt_mask), int(batch.numbers[0])
        options = dict(temperature=temperature, seed=seed, first=first)
        return self.answers(pretrained.bare(model), prompts, self.options.completion_length, **options)

    @torch.no_grad()
    def rewards(self, batch: Batch, drawn: list[list[int]]) -> Tensor:
        """Return the rewards [batch] of completions `drawn`, float32."""
        options, device = self.options.reward, batch.prompts.device
        if self.judge is None:
            asked = rows(batch.prompts, batch.prompt_mask)
            wanted = rows(batch.references, batch.reference_mask)
            numbers = [
                RULE[options.rule](self.text(prompt), self.text(made), self.text(truth))
                for prompt, made, truth in zip(asked, drawn, wanted, strict=True)
            ]
            return torch.tensor(numbers, device=device)
        ids, _ = self.joined(batch, drawn)
        scores: Tensor = self.judge.to(device)(input_ids=ids, use_cache=False).logits[:, 0].float()
        return scores if options.clip is None else scores.clamp(-options.clip, options.clip)

    def joined(self, batch: Batch, drawn: list[list[int]]) -> conversations.Batch:
        """Return the prompts with their completions as a batch of conversations, on the batch's device."""
        made = [
            Example(np.array(prompt + answer), np.arange(len(prompt + answer)) >= len(prompt))
            for prompt, answer in zip(rows(batch.prompts, batch.prompt_mask), drawn, strict=True)
        ]
        return self.move(collate(made, self.pad), batch.prompts.device)

    def scores(self, model: nn.Module, ids: Tensor) -> Tensor:
        """Return scores [batch, length - 1, vocabulary] of the tokens after the first of ids [batch, length].

        They are float32, and divided by the temperature.
        """
        scores: Tensor = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        return scores / self.options.temperature

    @torch.no_grad()
    def scores_before(self, model: nn.Module, ids: Tensor) -> Tensor:
        """Return `scores` [n, length - 1, vocabulary] of the policy that training began with."""
        if self.origin is not None:
            return self.scores(self.origin.to(ids.device), ids)
        inner = pretrained.bare(model)
        training = inner.training
        inner.eval()
        adapters = next(module for module in model.modules() if isinstance(module, PeftModel))
        with adapters.disable_adapter():
            scores = self.scores(inner, ids)
        inner.train(training)
        return scores

    def evaluate(self, model: nn.Module, batch: Batch) -> tuple[dict[str, Tensor], int | Tensor]:
        """Return sums over prompts of rewards, sampled and greedy, of divergences and lengths, and the count.

        Divergences are in nats per completion, lengths in tokens.
        """
        drawn = self.play(model, batch, self.options.temperature, self.config.seed)
        ids, answer = self.joined(batch, drawn)
        now, then = self.scores(model, ids).log_softmax(-1), self.scores_before(model, ids).log_softmax(-1)
        divergence = (now.exp() * (now - then)).sum(-1)[answer[:, 1:]].sum()
        sums = {
            "reward": self.rewards(batch, drawn).sum(),
            "reward_greedy": self.rewards(batch, self.play(model, batch)).sum(),
            "kl": divergence,
            "length": answer.sum(),
        }
        return {f"valid_{key}": value for key, value in sums.items()}, len(drawn)

    def examples(self, model: nn.Module) -> list[str]:
        """Return prompts with the policy's completions and their rewards."""
        chosen = np.linspace(0, len(self.sets["valid"]) - 1, min(SHOWN, len(self.sets["valid"]))).astype(int)
        device, shown = next(model.parameters()).device, []
        for index in chosen.tolist():
            batch = self.move(self.collate([self.sets["valid"][index]]), device)
            drawn = self.play(model, batch, self.options.temperature, self.config.seed)
            worth = float(self.rewards(batch, drawn))
            prompt = self.text(rows(batch.prompts, batch.prompt_mask)[0])
            shown.append(f"{prompt!r} -> {self.text(drawn[0])!r}: {worth:.3g}")
        return shown


def rows(ids: Tensor, mask: Tensor) -> list[list[int]]:
    """Return the unmasked tokens of each row; ids, mask: [batch, length]."""
    return [row[kept].tolist() for row, kept in zip(ids.cpu(), mask.bool().cpu(), strict=True)]


def likelihoods(scores: Tensor, ids: Tensor) -> Tensor:
    """Return the log-likelihood of each token after the first [batch, length - 1].

    scores: [batch, length - 1, vocabulary]; ids: [batch, length].
    """
    return -F.cross_entropy(scores.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view_as(ids[:, 1:])


def surrogate(chosen: Tensor, before: Tensor, answer: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """Return a loss of each completion that has ReMax's gradient [batch].

    Args:
        chosen: log-likelihoods of tokens [batch, length], with gradients.
        before: those under the initial policy [batch, length].
        answer: True at tokens of the completion [batch, length].
        rewards: of the completions, minus the baseline [batch].
        beta: weight of the divergence.
    """
    gaps = (chosen - before).detach() * answer
    ahead = gaps.flip(1).cumsum(1).flip(1)  # from each token to the end
    return -((rewards[:, None] - beta * ahead) * answer * chosen).sum(1)


RECIPE = ReMax  # see repro.ledger.recipes
