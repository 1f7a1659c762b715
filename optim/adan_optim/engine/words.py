"""What other packages call our options: a word that an optimizer does not have leads to the one it has."""

import difflib
from collections.abc import Collection

_DECOUPLED = (
    "no_prox",
    "adam_wd",
    "weight_decouple",
    "decoupled_weight_decay",
    "decoupled_decay",
    "adam_w_mode",
)

# Words for one thing, of which optimizers and drop-ins have some.
SYNONYMS = (
    ("lr", "learning_rate", "base_lr"),
    ("betas", "momentum", "beta1", "beta", "beta2", "b1", "b2"),
    ("eps", "epsilon"),
    ("weight_decay", "wd", "l2", "weight_decay_rate"),
    _DECOUPLED,
    ("max_grad_norm", "clip", "clip_grad", "clip_grad_norm", "grad_clip", "gradient_clipping", "max_norm"),
    ("caution", "cautious", "use_cautious"),
    ("fused", "triton", "use_triton"),
    ("param_rounding", "kahan_sum", "use_kahan", "stochastic_rounding"),
    ("state_dtype", "optim_bits"),
    ("warmup_steps", "warmup", "num_warmup_steps"),
)

# What is no option of ours, and what to do instead.
INSTEAD = {
    "restart_cond": "call its restart_opt() in your loop",
    "gradient_release": "use adan_optim.step_in_backward(optimizer)",
    **dict.fromkeys(
        _DECOUPLED, "it is no choice here: Adam and LARS add weight decay to the gradient, the others do not"
    ),
}


def nearest(word: str, accepted: Collection[str], cutoff: float = 0.6) -> str:
    """Return the accepted word that means the same as another, or else is spelt alike; "" if there is none.

    Args:
        word: the other word.
        accepted: those to choose from.
        cutoff: from 0 to 1, how alike the spelling must be; see `difflib.get_close_matches`.
    """
    for words in SYNONYMS:
        if word in words and (same := [each for each in words if each in accepted]):
            return same[0]
    alike = [] if word in INSTEAD else difflib.get_close_matches(word, accepted, n=1, cutoff=cutoff)
    return alike[0] if alike else ""
