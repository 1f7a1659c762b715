"""What the logs of Transformer-XL, which begin with the settings, determine about a row."""

import math

from repro.ledger.rows import Recipe
from repro.verify.checks import Check, Evidence, all_of, digits, positions, rates, shown
from repro.verify.settings import Ours, Settings, Table, rules

CUTOFFS = {"wt103": [20000, 40000, 200000]}  # of the adaptive softmax, by data set, as in its train.py


def _betas(settings: Settings) -> list[float]:
    return settings["opt_betas"] or [0.9, 0.999]  # of Adam, which train.py leaves at its defaults


def _cutoffs(settings: Settings) -> list[int]:
    return CUTOFFS[settings["dataset"]] if settings["adaptive"] else []


TABLE = Table(
    rules(
        ours={
            "batch_chunk": "gradient_accumulation_steps",
            "clip": "clip_grad",
            "eta_min": "schedule.min_lr",
            "eval_interval": "eval_every",
            "eval_tgt_len": "evaluation.tgt_len",
            "log_interval": "run.log_every",
            "lr": "optimizer.lr",
            "max_step": "steps",
            "n_token": "tokenizer.vocab_size",
            "optim": "optimizer.name",
            "scheduler": "schedule.name",
            "tied": "model.tie_word_embeddings",
            "warmup_step": "schedule.warmup_steps",
            "wd": "optimizer.weight_decay",
            "adaptive": Ours("model.cutoffs", _cutoffs),
            "dataset": Ours("data.name", lambda settings: {"wt103": "wikitext103"}[settings["dataset"]]),
            "fp16": Ours("amp", lambda settings: "fp16" if settings["fp16"] else "no"),
            "not_tied": Ours("model.tie_word_embeddings", lambda settings: not settings["not_tied"]),
            "opt_betas": Ours("optimizer.betas", _betas),
        },
        same={
            "": "batch_size seed tgt_len",
            "model.": "attn_type clamp_len d_embed d_head d_inner d_model div_val dropatt dropout ext_len "
            "init init_std mem_len n_head n_layer pre_lnorm proj_init_std same_length",
        },
        must={"max_eval_steps": -1, "restart_dir": "", "sample_softmax": -1},
        off="clip_nonemb debug finetune_v2 finetune_v3 restart varlen",
        # options of other optimizers, schedules (lr_min: the cosine ends at eta_min) and initialisations;
        # hardware and files; the number of parameters, which has a check of its own
        free="cuda data decay_rate dynamic_loss_scale emb_init emb_init_range gpu0_bsz init_range lr_min "
        "mom multi_gpu n_all_param n_nonemb_param patience static_loss_scale work_dir",
    )
)


def lr(evidence: Evidence, recipe: Recipe) -> Check:
    """Compare every learning rate in the log with ours at that step, to the last digit."""
    return digits(evidence.logs, rates(recipe), ".3g")


def epochs(evidence: Evidence, recipe: Recipe) -> Check:
    """Check that the log has records of all steps, each at our position in the epoch.

    An epoch reads each of `batch_size` streams to its end, `tgt_len` tokens at a time.
    """
    assert evidence.log is not None
    steps, every = recipe.get("steps"), recipe.get("run.log_every")
    table = evidence.log.of("train")
    records = positions("record at step", range(every, steps + 1, every), table["step"], f"{steps:,} steps")
    stream = recipe.get("train_tokens") // recipe.get("batch_size")
    batches = math.ceil((stream - 1) / recipe.get("tgt_len"))  # the last token is a target only
    notes = [
        f"step {record.step}: batch {record.batch:g} of epoch {record.epoch:g}, ours have {batches} each"
        for record in table.itertuples()
        if record.step != (record.epoch - 1) * batches + record.batch
    ]
    says = f"{steps:,}, {batches:,} an epoch"
    return all_of(Check(not notes, says, len(table), shown(notes)), records)


def validation(evidence: Evidence, recipe: Recipe) -> Check:
    """Check that the log has a validation every `eval_every` steps."""
    assert evidence.log is not None
    steps, every = recipe.get("steps"), recipe.get("eval_every")
    logged = evidence.log.of("eval")["step"]
    return positions("validation at step", range(every, steps + 1, every), logged, f"every {every:,}")
