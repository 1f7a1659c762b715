"""Configuration of nlp/train_transformer_xl.py."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

from hydra.core.config_store import ConfigStore

from repro.errors import UserError
from repro.text.config import TEXTS, TextConfig, TokenizerConfig
from repro.train.config import TrainConfig, at_least, one_of


@dataclass
class ModelConfig:
    """Transformer-XL (Dai et al., arXiv 1901.02860). The keys are named as in the original code."""

    name: str = "transformer_xl"  # in records and tables
    n_layer: int = 4  # number of blocks
    n_head: int = 4  # heads of attention
    d_head: int = 32  # width of a head
    d_embed: int = 128  # width of the embedding
    d_model: int = 128  # width of the blocks
    d_inner: int = 512  # width inside the feed-forward layers
    dropout: float = 0.1  # probability
    dropatt: float = 0.0  # of attention weights
    mem_len: int = 64  # tokens before a segment that attention reaches
    ext_len: int = 0  # further tokens, recomputed; only 0 is supported
    attn_type: int = 0  # only 0 is supported: relative positions, with biases shared by the layers
    same_length: bool = False  # let every token attend to the same number of tokens
    clamp_len: int = -1  # largest distance, to which longer ones are clamped; -1: none
    pre_lnorm: bool = False  # normalise before attention and perceptron instead of after
    tie_word_embeddings: bool = True  # share the embedding's weights with the softmax
    cutoffs: list[int] = field(default_factory=list)  # of the adaptive softmax; []: plain softmax
    div_val: int = 1  # divisor of the embedding size from one part of the vocabulary to the next
    tie_projs: list[bool] = field(default_factory=lambda: [False])  # per part
    init: str = "normal"  # normal | uniform
    init_range: float = 0.1  # of uniform
    init_std: float = 0.02  # of normal
    proj_init_std: float = 0.01  # of projections of embeddings, with init=normal
    attention: str = "auto"  # textbook | explicit | fused; auto: fused on GPUs, explicit elsewhere
    checkpoint: str | None = None  # initial weights: a run folder, or any file that repro.interop reads

    def check(self) -> None:
        """Raise UserError for a value that cannot work, naming it."""
        sizes = ("n_layer", "n_head", "d_head", "d_embed", "d_model", "d_inner", "div_val")
        at_least(1, "model.", self, *sizes)
        at_least(0, "model.", self, "mem_len")
        for key in ("dropout", "dropatt"):
            if not 0 <= getattr(self, key) < 1:
                raise UserError(f"model.{key}={getattr(self, key)}: must lie in [0, 1)")
        if self.d_model % 2:
            raise UserError(f"model.d_model={self.d_model}: must be even, for equally many sines and cosines")
        for key in ("attn_type", "ext_len"):
            if getattr(self, key) != 0:
                raise UserError(f"model.{key}={getattr(self, key)}: only 0 is supported")
        one_of("model.init", self.init, ("normal", "uniform"))
        one_of("model.attention", self.attention, ("auto", "textbook", "explicit", "fused"))
        if self.cutoffs and not all(low < high for low, high in pairwise([0, *self.cutoffs])):
            raise UserError(f"model.cutoffs={self.cutoffs}: must rise, from above 0")
        if len(self.tie_projs) != len(self.cutoffs) + 1:
            parts = f"{len(self.cutoffs) + 1} with model.cutoffs={self.cutoffs}"
            raise UserError(f"model.tie_projs={self.tie_projs}: must have a value per part, {parts}")
        if self.d_embed // self.div_val ** len(self.cutoffs) < 1:
            raise UserError(f"model.div_val={self.div_val}: leaves nothing of model.d_embed={self.d_embed}")


@dataclass
class EvaluationConfig:
    """How validation and test texts are read; null: as in training."""

    batch_size: int = 10  # streams
    tgt_len: int | None = None
    mem_len: int | None = None  # null: segment and memory are together as long as in training
    same_length: bool | None = None
    clamp_len: int | None = None


@dataclass
class TransformerXLConfig(TrainConfig):
    """All settings of nlp/train_transformer_xl.py. `batch_size` streams are read side by side."""

    options: ClassVar = {"model": ("transformer_xl_*",), "data": TEXTS}
    model: ModelConfig = field(default_factory=ModelConfig)
    data: TextConfig = field(default_factory=TextConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    tgt_len: int = 64  # tokens of a segment
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    train_tokens: int | None = None  # number of tokens that the training text must have

    def check(self) -> None:
        """Raise UserError for a value that cannot work, naming it."""
        super().check()
        self.model.check()
        at_least(1, "", self, "tgt_len")
        at_least(1, "evaluation.", self.evaluation, "batch_size", "tgt_len")
        if self.eval_mem_len < 0:
            raise UserError(f"evaluation.mem_len={self.eval_mem_len}: must be at least 0")
        for what, same, reach in (
            ("model", self.model.same_length, self.model.mem_len),
            ("evaluation", self.eval_same_length, self.eval_mem_len),
        ):
            if same and not reach:
                raise UserError(f"{what}.same_length=true: needs {what}.mem_len above 0")

    @property
    def eval_tgt_len(self) -> int:
        """Tokens of a segment in evaluation."""
        return self.tgt_len if self.evaluation.tgt_len is None else self.evaluation.tgt_len

    @property
    def eval_mem_len(self) -> int:
        """Tokens of memory in evaluation."""
        if self.evaluation.mem_len is not None:
            return self.evaluation.mem_len
        return self.model.mem_len + self.tgt_len - self.eval_tgt_len if self.model.mem_len else 0

    @property
    def eval_same_length(self) -> bool:
        """Whether every token attends to the same number of tokens, in evaluation."""
        same = self.evaluation.same_length
        return self.model.same_length if same is None else same

    @property
    def eval_clamp_len(self) -> int:
        """The distance to which longer ones are clamped, in evaluation."""
        clamp = self.evaluation.clamp_len
        return self.model.clamp_len if clamp is None else clamp


ConfigStore.instance().store(name="transformer_xl_schema", node=TransformerXLConfig)
