"""Fine-tune an encoder on a task of GLUE, or one like it.

    python nlp/finetune_glue.py optimizer=adamw epochs=4
    python nlp/finetune_glue.py task=sst2 data.root=PATH model.checkpoint=RUN

Without arguments it trains a small encoder from scratch to tell which package of Python's library a sentence
documents, in a few minutes on two CPU cores.
"""

import sys

from nlp.config.glue import GlueConfig
from repro.train.cli import entry_point


@entry_point("glue", GlueConfig, __doc__)
def main(config: GlueConfig, overrides: list[str]) -> None:
    """Train as the command line says."""
    from nlp.finetune_glue import finetune  # this module, with its imports

    finetune(config, overrides)


if __name__ == "__main__":
    sys.exit(main())  # before the imports that take seconds

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Subset
from tqdm import tqdm

from nlp.bert import Untrained
from nlp.glue import predictions, pretrained, seeds, tasks
from nlp.glue.data import read
from nlp.glue.encode import Batch, Encoded, Item, batches, by_length, collate
from nlp.glue.metrics import compute
from repro.errors import UserError
from repro.interop import read_weights
from repro.train.config import TrainConfig
from repro.train.data import Plan, Sized, regrouped
from repro.train.run_folder import run_name, write_atomically
from repro.train.task import Task
from repro.train.trainer import train

SHOWN = 8  # examples in the summary
AT_A_TIME = 64  # examples in a batch for predictions


class Finetuning(Task[Batch]):
    """Classes or scores of sentences or pairs, measured by the task's own metrics in percent."""

    name = "glue"
    schema = GlueConfig
    samples = "examples"
    products = ("tokenizer", predictions.FOLDER)

    def __init__(self, config: GlueConfig, synthetic: bool = False) -> None:
        if synthetic:
            self.config, self.scale = config, 1.0
            self.vocabulary = Untrained(config.model.vocab_size or config.tokenizer.size)
            self.start = pretrained.ours(config, self.vocabulary, None)
            task = tasks.describe(config.task, None, {key: getattr(config.data, key) for key in tasks.KEYS})
            self.regression = task.score is not None
            self.outputs = config.model.num_labels or (1 if self.regression else len(task.labels))
            return
        found = read(config.task, config.data)
        self.task, self.train_examples, self.test = found.task, found.train, found.test
        self.config, self.dev_examples = config, found.dev
        self.check()
        skip = config.data.skip_valid_examples
        self.dev = {suffix: part.pick(range(skip, len(part))) for suffix, part in found.dev.items()}
        self.start = pretrained.begin(config, lambda: [text for pair in found.train.texts for text in pair])
        self.model_name = self.start.title
        self.train_set = Encoded([found.train], self.start.coder, "train")
        # One set of all that is evaluated: the parts of the development set, and test files with labels.
        labelled = [part for part in self.test.values() if part.labels is not None]
        self.parts: list[tuple[str, slice]] = []
        for suffix, part in [*self.dev.items(), *(("", part) for part in labelled)]:
            begin = self.parts[-1][1].stop if self.parts else 0
            self.parts.append((suffix, slice(begin, begin + len(part))))
        self.evaluated = Encoded([*self.dev.values(), *labelled], self.start.coder, "dev")
        self.dev_size = sum(map(len, self.dev.values()))

    def check(self) -> None:
        """Take what training needs from the task, and raise UserError if the configuration contradicts it."""
        config, task = self.config, self.task
        self.regression = task.score is not None
        outputs = 1 if self.regression else len(task.labels)
        loss = "mse" if self.regression else "cross_entropy"
        if config.loss not in (None, loss):
            raise UserError(f"loss={config.loss}: {task.name} is trained with {loss}")
        if config.model.num_labels not in (None, outputs):
            raise UserError(f"model.num_labels={config.model.num_labels}: {task.name} takes {outputs}")
        skip, shortest = config.data.skip_valid_examples, min(map(len, self.dev_examples.values()))
        if skip >= shortest:
            raise UserError(f"data.skip_valid_examples={skip}: the development set has {shortest}")
        expected, there = config.data.train_examples, len(self.train_examples)
        if expected not in (None, there):
            cure = "get the whole task, or set it to null to train on these"
            raise UserError(f"data.train_examples={expected}: there are {there} for training; {cure}")
        self.outputs = outputs
        self.scale = 1.0
        if task.score is not None:
            self.scale = config.data.label_scale or 1 / max(map(abs, task.score))
        self.metric = f"valid_{task.metrics[0]}{next(iter(task.dev))}"
        known = [f"valid_{name}{suffix}" for suffix in task.dev for name in ("loss", *task.metrics)]
        if config.select.metric not in (None, *known, *(f"ema_{name}" for name in known)):
            raise UserError(f"select.metric={config.select.metric}: {task.name} has {', '.join(known)}")

    def train_data(self) -> Sized:
        """Return the training examples."""
        return self.train_set

    def valid_data(self) -> Sized:
        """Return the examples of all parts of the development set."""
        return Subset(self.evaluated, range(self.dev_size))

    def test_data(self) -> Sized | None:
        """Return the test examples with known labels, or None; GLUE's are unknown."""
        rest = range(self.dev_size, len(self.evaluated))
        return Subset(self.evaluated, rest) if rest else None

    def plan(self, data: Sized, config: TrainConfig) -> Plan:
        """Return the same batches in every epoch, in a new order each."""
        made = batches(self.train_set.lengths, config.batch_size, self.config.data.max_tokens, config.seed)
        return regrouped(made, config.seed)

    def eval_plan(self, data: Sized, batch_size: int, processes: int, rank: int) -> Sequence[Sequence[int]]:
        """Return batches of examples of about the same length."""
        assert isinstance(data, Subset)
        return by_length(self.evaluated.lengths[list(data.indices)], batch_size)[rank::processes]

    def collate(self, samples: Sequence[Item]) -> Batch:
        """Return a batch, padded to its longest example."""
        return collate(samples, self.start.pad)

    def num_items(self, batch: Batch) -> float:
        """Return the number of examples."""
        return float(len(batch.labels))

    def build_model(self) -> nn.Module:
        """Return the encoder with a new head."""
        return self.start.build(self.outputs)

    def synthetic_batch(self, n: int) -> Batch:
        """Return n random examples of full length."""
        shape = n, self.config.data.max_length
        return Batch(
            torch.randint(self.vocabulary.vocab_size, shape),
            torch.ones(n, 0, dtype=torch.bool),
            torch.zeros(shape, dtype=torch.long),
            torch.randint(self.outputs, (n,)).float(),
            torch.arange(n),
        )

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the class scores [batch, classes], or regression outputs [batch, 1], float32."""
        return self.start.forward(model, batch.tokens, batch.attention_mask, batch.token_type_ids).float()

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each example [batch]: cross entropy, or the squared error of a scaled score.

        logits: [batch, outputs]; labels: [batch].
        """
        if self.regression:
            return (logits[:, 0] - self.scale * labels) ** 2
        return F.cross_entropy(logits, labels.long(), reduction="none")

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean loss, a scalar."""
        return self.losses(self.logits(model, batch), batch.labels).mean()

    def predict(self, logits: Tensor) -> Tensor:
        """Return each example's most likely class number, or its score [batch]; logits: [batch, outputs]."""
        return logits[:, 0] / self.scale if self.regression else logits.argmax(1)

    def evaluate(self, model: nn.Module, batch: Batch) -> tuple[dict[str, Tensor], int]:
        """Return losses, predictions and a 1 at each example seen, each in a vector over the whole set."""
        labels, indices = batch.labels, batch.indices
        logits = self.logits(model, batch)

        def vector(values: Tensor) -> Tensor:
            whole = torch.zeros(len(self.evaluated), dtype=torch.float64, device=indices.device)
            return whole.index_copy(0, indices, values.double())

        sums = {"losses": self.losses(logits, labels), "predictions": self.predict(logits)}
        return {key: vector(x) for key, x in (sums | {"seen": torch.ones_like(labels)}).items()}, len(indices)

    def metrics(self, sums: dict[str, Tensor], count: float) -> dict[str, float]:
        """Return the mean loss, and the task's metrics in percent, of each part that was evaluated."""
        made: dict[str, float] = {}
        for suffix, part in self.parts:
            if not sums["seen"][part].any():
                continue
            given = sums["predictions"][part].numpy()
            values = {"loss": float(sums["losses"][part].mean())}
            values |= compute(self.task.metrics, given, self.evaluated.labels[part])
            made |= {f"valid_{name}{suffix}": value for name, value in values.items()}
        return made

    def begin(self, folder: Path) -> None:
        """Save the tokenizer in the run folder, so that another run can start from this one."""
        self.start.save_tokenizer(folder / "tokenizer")
        print(f"{self.task.name}: {len(self.train_set):,} training examples; starts from {self.start.where}")

    @torch.no_grad()
    def predictions(self, model: nn.Module, encoded: Encoded) -> np.ndarray:
        """Return a model's predictions [examples], in order."""
        device = next(model.parameters()).device
        made = np.zeros(len(encoded))
        for batch in by_length(encoded.lengths, AT_A_TIME):
            moved = self.move(self.collate([encoded[index] for index in batch]), device)
            made[batch] = self.predict(self.logits(model, moved)).cpu().numpy()
        return made

    def finish(self, folder: Path) -> None:
        """Write the predictions of the best checkpoint into the run folder."""
        model = self.build_model().eval()
        model.load_state_dict(read_weights(folder)[0])
        if torch.accelerator.is_available():
            model.to(torch.accelerator.current_accelerator())
        (folder / predictions.FOLDER).mkdir(exist_ok=True)
        files = [(f"dev{suffix}", part) for suffix, part in self.dev.items()] + list(self.test.items())
        for name, part in tqdm(files, desc="predictions", unit="file", leave=False, disable=None):
            given = self.predictions(model, Encoded([part], self.start.coder, name))
            shown = [predictions.shown(self.task, value) for value in given]
            table = predictions.table(self.task, part, shown)
            write_atomically(folder / predictions.FOLDER / f"{name}.tsv", table)

    def examples(self, model: nn.Module) -> list[str]:
        """Return some examples of the development set with the model's predictions."""
        part = next(iter(self.dev.values()))
        chosen = np.linspace(0, len(part) - 1, min(SHOWN, len(part))).astype(int).tolist()
        few = part.pick(chosen)
        given = self.predictions(model, Encoded([few], self.start.coder, "examples"))
        assert few.labels is not None
        return [
            predictions.line(self.task, texts, prediction, label)
            for texts, prediction, label in zip(few.texts, given, few.labels, strict=True)
        ]


RECIPE = Finetuning  # see repro.ledger.recipes


def finetune(config: GlueConfig, overrides: list[str]) -> None:
    """Train as the command line says, once or with several seeds, and write predictions."""
    config = replace(config, model=pretrained.adopted(config))
    task = Finetuning(config)
    summaries = [train(task, run, name) for name, run in seeds.runs(config, overrides)]
    if config.seeds is not None and int(os.environ.get("RANK", 0)) == 0:
        folder = Path(config.run.root) / task.name / (config.run.name or run_name(overrides))
        print(seeds.describe(seeds.write(folder, config.seeds, summaries)))
