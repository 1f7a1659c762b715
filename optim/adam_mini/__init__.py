"""Drop-in for the official package: `from adam_mini import Adam_mini`.

Like the official code it chooses blocks by name; `adan_optim.AdamMini` uses the structure of the model, which
is safer.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from adan_optim import AdamMini, Partition
from adan_optim.base import Options
from adan_optim.engine.blocks import Shape, default
from adan_optim.engine.checks import whole_number
from adan_optim.engine.rule import Group
from adan_optim.engine.storage import StateSpec
from adan_optim.interop.official import warn_if_installed
from adan_optim.partitions import Entry

__all__ = ["Adam_mini"]

warn_if_installed("adam_mini")


class Adam_mini(AdamMini):
    """`adan_optim.AdamMini` with constructor and rules by name of the official package, version 1.1.1.

    A parameter has the blocks of the first set with a word in its name, in lower case:

    * `adam_block_names` (bias): every element, as in Adam.
    * `wqk_names` (queries and keys): dim dim / n_heads elements, which are a head if its size is
      dim / n_heads.
    * `embd_names`, `output_names`, `wv_names`, `mlp_names`, `attn_proj_names`: a row.
    * all others: one block.

    The sets may be changed until the first step; the authors advise `wv_names = {}` for runs of fewer than
    about 10 thousand steps. Names with "norm", "ln" or "bias" have no weight decay.

    Where the official code fails, this one continues: tensors of one dimension have one block, those of more
    than two one for each row, queries and keys of other sizes n_heads blocks, or one for each row if n_heads
    does not divide them.

    Args:
        named_parameters: pairs of a name and a parameter of any shape; each trainable one gets a group.
        lr, betas, eps, weight_decay: see `adan_optim.AdamMini`.
        model_sharding: has no effect, as in the official code.
        dim: width of the model.
        n_heads: number of query heads.
        n_kv_heads: number of key heads, for the names in `k_names`. None uses dim dim / n_heads elements for
            a head, as the official code does with any value.
        verbose: print the partition at the first step.
        options: see `adan_optim.AdamMini`.

    Raises:
        ValueError: for invalid sizes, and for what the base class refuses.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, Tensor]],
        lr: float | Tensor = 1e-3,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        model_sharding: bool | None = None,
        dim: int = 2048,
        n_heads: int = 32,
        n_kv_heads: int | None = None,
        verbose: bool = True,
        **options: Unpack[Options],
    ) -> None:
        for key, value in dict(dim=dim, n_heads=n_heads, n_kv_heads=n_kv_heads).items():
            if value is not None or key != "n_kv_heads":
                whole_number(key, value)
        if n_heads > dim:
            raise ValueError(f"n_heads={n_heads}: more than dim={dim}")
        if n_kv_heads is not None and n_heads % n_kv_heads:
            raise ValueError(f"n_kv_heads={n_kv_heads}: must divide n_heads={n_heads}")
        self.adam_block_names: set[str] = {"bias"}
        self.wqk_names: set[str] = {"k_proj", "q_proj", "wq", "wk", "query", "key"}
        self.k_names: set[str] = {"k_proj", "wk", "key"}
        self.embd_names: set[str] = {"embd", "embed", "wte"}
        self.output_names: set[str] = {"lm_head", "output", "final_layer"}
        self.wv_names: set[str] = {"v_proj", "wv", "value"}
        self.mlp_names: set[str] = {"feed_forward", "linear", "mlp"}
        self.attn_proj_names: set[str] = {"o_proj", "wo", "attn.proj"}
        self.head_numel = dim * dim // n_heads
        self.n_heads, self.n_kv_heads, self.verbose = n_heads, n_kv_heads, verbose
        groups = []
        for pair in named_parameters:
            if not (isinstance(pair, tuple) and isinstance(pair[0], str)):
                raise TypeError(
                    f"Adam_mini goes by names: give model.named_parameters(), not a {type(pair).__name__}; "
                    "adan_optim.AdamMini takes parameters and groups"
                )
            name, p = pair
            if p.requires_grad:
                decay = 0.0 if _has(("norm", "ln", "bias"), name.lower()) else weight_decay
                groups.append({"name": name.lower(), "params": [p], "weight_decay": decay})
        super().__init__(groups, lr, betas, eps, weight_decay, **options)

    def state_spec(self, p: Tensor, group: Group) -> StateSpec:
        if p not in self._blocks:
            self._blocks[p] = self._by_name(group.get("name", ""), p)[0]
        return super().state_spec(p, group)

    def step(self, closure: Any = None) -> Any:
        """Make a step; see `adan_optim.base.Optimizer`."""
        if self.verbose:
            named = [(group["name"], p) for group in self.param_groups for p in group["params"]]
            print(Partition({name: Entry(p, *self._by_name(name, p)) for name, p in named}))
            self.verbose = False
        return super().step(closure)

    def _by_name(self, name: str, p: Tensor) -> tuple[Shape, str]:
        rows = {*self.embd_names, *self.output_names, *self.wv_names, *self.mlp_names, *self.attn_proj_names}
        if _has(self.adam_block_names, name):
            return (max(p.numel(), 1),), "bias: every element"
        if p.ndim > 1 and _has(self.wqk_names, name):
            if self.n_kv_heads and _has(self.k_names, name):
                return self._heads(self.n_kv_heads, p), "key head"
            if p.numel() % self.head_numel == 0:
                return (p.numel() // self.head_numel,), "query or key head"
            return self._heads(self.n_heads, p), "query or key head"
        if p.ndim > 1 and _has(rows, name):
            return default(p.shape), "row"
        return (1,), "one for all"

    def _heads(self, count: int, p: Tensor) -> Shape:
        return (count,) if p.shape[0] % count == 0 and p.numel() else default(p.shape)

    def __getstate__(self) -> dict[str, Any]:
        own = {key: value for key, value in vars(self).items() if key.endswith("_names")}
        sizes = dict(head_numel=self.head_numel, n_heads=self.n_heads, n_kv_heads=self.n_kv_heads)
        return {**super().__getstate__(), **own, **sizes, "verbose": self.verbose}


def _has(words: Iterable[str], name: str) -> bool:
    return any(word in name for word in words)
