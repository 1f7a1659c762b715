"""LLaMA-Factory: its trainers ask Hugging Face's Trainer for class and arguments; we replace the answer.

The rest is a tiny model, and the work of `llamafactory-cli train`.
"""

import json
from pathlib import Path

import torch
from llamafactory.train.tuner import run_exp
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer

import adan_optim

STEPS = 8
here = Path("runs/llama_factory")
words = [*"abcdefghijklmnopqrstuvwxyz", "<s>", "</s>", "<unk>"]
if not here.exists():
    tokens = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    special = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>")
    PreTrainedTokenizerFast(tokenizer_object=tokens, **special).save_pretrained(here)
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **sizes)).save_pretrained(here)
    rows = [{"text": "".join(words[(3 * i + j) % 26] for j in range(20))} for i in range(32)]
    (here / "letters.json").write_text(json.dumps(rows))
    (here / "dataset_info.json").write_text(
        json.dumps({"letters": {"file_name": "letters.json", "columns": {"prompt": "text"}}})
    )

# the plug
plug = adan_optim.Adan, {"lr": 0.01, "weight_decay": 0.1, "max_grad_norm": 0.5}
Trainer.get_optimizer_cls_and_kwargs = staticmethod(lambda settings, model=None: plug)

run_exp(
    dict(
        stage="pt",
        do_train=True,
        finetuning_type="full",
        model_name_or_path=str(here),
        dataset="letters",
        dataset_dir=str(here),
        output_dir="runs/llama_factory_checkpoints",
        max_steps=STEPS,
        save_steps=STEPS,
        cutoff_len=16,
        max_grad_norm=0,
        report_to="none",
        use_cpu=True,
    )
)
