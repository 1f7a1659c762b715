"""Configuration of nlp/finetune_glue.py."""

from dataclasses import dataclass, field
from typing import ClassVar

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from nlp.config.bert import EncoderConfig
from repro.errors import UserError
from repro.text.config import TokenizerConfig
from repro.train.config import TrainConfig, at_least, one_of

SCRATCH = "scratch"


@dataclass
class ClassifierConfig(EncoderConfig):
    """An encoder with a head on its first token. A checkpoint overrides the keys, except for the dropout."""

    # a pre-training run's folder, a Hugging Face model (folder or name), or scratch
    checkpoint: str | None = None
    num_labels: int | None = None  # outputs of the head; null: as the task needs
    classifier_dropout: float | None = None  # null: hidden_dropout_prob


@dataclass
class GlueDataConfig:
    """Where a task's examples are and, for tasks outside GLUE, what they are."""

    name: str = "glue"  # of the data in records and tables
    root: str | None = None  # folder of the task, or of several, in GLUE's layout; null: use data.hub
    hub: str | None = "nyu-mll/glue"  # GLUE on the Hugging Face hub, or a folder that `datasets` reads
    # columns of the one or two sentences; null, here and below: the task's own
    texts: list[str] | None = None
    label: str | None = None  # column
    labels: list[str] | None = None  # classes
    score: list[float] | None = None  # lowest and highest label, for regression
    metrics: list[str] | None = None  # accuracy, f1, matthews_correlation | pearson, spearman
    columns: list[str] | None = None  # names, if train.tsv and dev.tsv have no header
    bad_lines: str | None = None  # refuse | skip: lines with the wrong number of columns
    train_examples: int | None = None  # required number
    skip_valid_examples: int = 0  # first examples of the development set to leave out
    mean_length: int | None = None  # tokens of an example, used only in the ledger's cost estimates
    max_length: int = 128  # tokens; the longer sentence of a longer pair is cut
    max_tokens: int | None = None  # of a batch with its padding; batches of longer examples are smaller
    # factor on scores in training; null: the highest becomes 1
    label_scale: float | None = None


@dataclass
class GlueConfig(TrainConfig):
    """All settings of nlp/finetune_glue.py."""

    options: ClassVar = {"model": ("bert_*", "roberta_*")}
    task: str = "packages"  # cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli, or the name of a folder
    seeds: list[int] | None = None  # one run for each, and their median; null: one run with `seed`
    loss: str | None = None  # cross_entropy | mse; null: as the task needs
    model: ClassifierConfig = field(default_factory=ClassifierConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)  # unless the checkpoint has one
    data: GlueDataConfig = field(default_factory=GlueDataConfig)

    def check(self) -> None:
        """Raise UserError for a value that cannot work, naming it."""
        super().check()
        self.model.check()
        data = self.data
        if data.bad_lines is not None:
            one_of("data.bad_lines", data.bad_lines, ("refuse", "skip"))
        if self.loss is not None:
            one_of("loss", self.loss, ("cross_entropy", "mse"))
        if self.seeds is not None and (not self.seeds or len(set(self.seeds)) < len(self.seeds)):
            raise UserError(f"seeds={self.seeds}: must be numbers, each once, or null for `seed` alone")
        if self.seeds is not None and min(self.seeds) < 0:
            raise UserError(f"seeds={self.seeds}: must be at least 0")
        at_least(8, "data.", data, "max_length")
        if data.max_tokens is not None and data.max_tokens < data.max_length:
            longest = f"data.max_length={data.max_length}"
            raise UserError(f"data.max_tokens={data.max_tokens}: must be at least {longest}")
        at_least(0, "data.", data, "skip_valid_examples")
        if data.label_scale is not None and not data.label_scale > 0:
            raise UserError(f"data.label_scale={data.label_scale}: must be above 0")
        if self.model.checkpoint is None:
            raise UserError(f"model.checkpoint is not set: {self.cure}; {SCRATCH} starts from none")

    @property
    def cure(self) -> str:
        """What to set model.checkpoint to."""
        row = self.row
        if row is None or row.after is None:
            return "name the folder of a run of nlp/pretrain_bert.py, or a Hugging Face model"
        scale = " --scale proxy" if row.scale == "proxy" else ""
        return (
            f"{row.name} starts from {row.after}, `python scripts/reproduce.py {row.after}{scale}`: name its "
            "run's folder, or a Hugging Face model"
        )


def proxy_task(_root_: DictConfig) -> str:
    """Return the task of a row's proxy: the row's own with data.root set, else the embedded one."""
    task = str(_root_.row.name).split("/")[-1].split("_")[0]
    return "packages" if _root_.data.root is None else task


OmegaConf.register_new_resolver("proxy_task", proxy_task, replace=True)
ConfigStore.instance().store(name="glue_schema", node=GlueConfig)
