"""Small logs in each format that was released with Adan, as the programs write them."""

# ruff: noqa: E501  the lines of logs are long

from dataclasses import dataclass
from pathlib import Path

from repro.logs import FORMATS
from repro.logs.log import Log, Source

TIMM = """\
epoch,train_loss,eval_loss,eval_top1,eval_top5\r
0,6.969629015241351,6.8789,0.35,1.4740000004577636\r
1,6.5,6.25,1.5,4.75\r
epoch,train_loss,eval_loss,eval_top1,eval_top5\r
2,6.125,5.75,3.25,9.5\r
3,5.875,5.5,61.874000063476565,84.37599989990234\r
"""
TIMM_ARGS = """\
batch_size: 256
bce_loss: true
cooldown_epochs: 1
epochs: 3
experiment:
model: deit_small_patch16_224
model_ema: false
opt_betas:
- 0.98
- 0.92
- 0.99
smoothing: 0.1
"""
MAE = """\
{"train_lr": 1.25e-05, "train_loss": 1.0373671979237444, "epoch": 0}
{"train_lr": 3.75e-05, "train_loss": 0.82, "epoch": 1}
{"train_lr": 6.25e-05, "train_loss": 0.75, "epoch": 2}
{"train_lr": 6.25e-05, "train_loss": 0.7498, "epoch": 2}
{"train_lr": 8.75e-05, "train_loss": 0.72, "epoch": 3}
"""
MAE_FINETUNING = """\
{"train_lr": 0.00074, "train_loss": 5.9, "test_loss": 1.77, "test_acc1": 61.33637235611582, "test_acc5": 84.7, \
"epoch": 0, "n_parameters": 304326632}
{"train_lr": 0.0022, "train_loss": 4.5, "test_loss": 1.19, "test_acc1": 72.25, "test_acc5": 91.625, "epoch": 1, \
"n_parameters": 304326632}
"""
FAIRSEQ = """\
[2022-08-01 01:27:38,652][fairseq_cli.train][INFO] - {'_name': None, 'common': {'seed': 1, 'fp16': True, \
'min_loss_scale': 0.0001}, 'optimization': {'max_update': 1000, 'clip_norm': 5.0, 'lr': [0.001]}, 'task': \
{'_name': 'masked_lm', 'sample_break_mode': complete, 'shorten_method': none, 'data': '/data/'}}
[2022-08-01 01:27:38,705][fairseq.tasks.masked_lm][INFO] - dictionary: 50264 types
[2022-08-01 01:27:47,160][fairseq_cli.train][INFO] - RobertaModel(
  (encoder): RobertaEncoder(
    (dropout_module): FairseqDropout()
  )
)
[2022-08-01 01:27:47,163][fairseq_cli.train][INFO] - num. shared model params: 209,714,265 (num. trained: 209,714,265)
[2022-08-01 01:27:47,252][fairseq.data.data_utils][INFO] - loaded 1,066,112 examples from: /data/valid
[2022-08-01 01:28:07,678][fairseq_cli.train][INFO] - training on 8 devices (GPUs/TPUs)
[2022-08-01 01:28:07,680][fairseq.trainer][INFO] - No existing checkpoint found bert/adan2/checkpoint_last.pt
[2022-08-01 01:28:59,009][fairseq.data.iterators][INFO] - grouped total_num_itrs = 502
[2022-08-01 01:29:52,104][train_inner][INFO] - {"epoch": 1, "update": 0.398, "loss": "14.125", "ppl": "17863.8", \
"wps": "360757", "ups": "3.05", "wpb": "118068", "bsz": "256", "num_updates": "200", "lr": "2e-05", "gnorm": "2.326", \
"clip": "0", "loss_scale": "64", "train_wall": "73", "gb_free": "19.9", "wall": "104"}
[2022-08-01 01:28:59,309][fairseq.trainer][INFO] - NOTE: gradient overflow detected, ignoring gradient, setting loss \
scale to: 32.0
[2022-08-01 01:30:52,104][train_inner][INFO] - {"epoch": 1, "update": 0.797, "loss": "10.5", "ppl": "1448.15", \
"wps": "360757", "ups": "3.05", "wpb": "118068", "bsz": "256", "num_updates": "400", "lr": "4e-05", "gnorm": "1.5", \
"clip": "2.5", "loss_scale": "32", "train_wall": "139", "gb_free": "19.9", "wall": "170"}
[2022-08-01 01:31:04,987][valid][INFO] - {"epoch": 1, "valid_loss": "9.5", "valid_ppl": "724.08", \
"valid_wps": "1.61125e+06", "valid_wpb": "117287", "valid_bsz": "255.5", "valid_num_updates": "500"}
[2022-08-01 01:31:05,115][fairseq.checkpoint_utils][INFO] - Saved checkpoint bert/adan2/checkpoint_1_500.pt (epoch 1 @ \
500 updates, score 9.5) (writing took 5.5 seconds)
[2022-08-01 01:31:08,005][train][INFO] - {"epoch": 1, "train_loss": "11.25", "train_ppl": "2435.5", \
"train_wps": "362334", "train_ups": "3.06", "train_wpb": "118298", "train_bsz": "256", "train_num_updates": "501", \
"train_lr": "5.01e-05", "train_gnorm": "1.744", "train_clip": "1", "train_loss_scale": "32", \
"train_train_wall": "170", "train_gb_free": "22.8", "train_wall": "201"}
[2022-08-01 01:31:50,456][fairseq_cli.train][INFO] - done training in 202.5 seconds
"""
FAIRSEQ_RESUMED = """\
[2022-08-04 15:16:39,084][fairseq.trainer][INFO] - Loaded checkpoint bert/adan2/checkpoint_last.pt (epoch 1 @ 300 \
updates)
[2022-08-04 15:17:52,104][train_inner][INFO] - {"epoch": 1, "update": 0.797, "loss": "10.501", "num_updates": "400", \
"lr": "4e-05", "wall": "0"}
[2022-08-04 15:18:52,104][train_inner][INFO] - {"epoch": 2, "update": 1.2, "loss": "9", "num_updates": "6e+02", \
"lr": "6e-05", "wall": "0"}
"""
RULE = "=" * 100
DASHES = "-" * 100
TRANSFORMER_XL = f"""\
{RULE}
    - data : /data/wikitext-103/
    - dropatt : 0.0
    - lr : 0.001
    - max_step : 800
    - restart : False
    - restart_dir :\N{SPACE}
    - opt_betas : [0.9, 0.9, 0.999]
    - n_all_param : 151107538
{RULE}
#params = 151107538
#non emb params = 41066400
| epoch   1 step      200 |    200 batches | lr 6.67e-05 | ms/batch 742.71 | loss  8.90 | ppl  7366.806
| epoch   1 step      400 |    400 batches | lr 0.000133 | ms/batch 761.92 | loss  6.85 | ppl   942.451
{DASHES}
| Eval   1 at step      400 | time: 300.93s | valid loss  6.50 | valid ppl   665.142
{DASHES}
| epoch   2 step      600 |    100 batches | lr 0.0001 | ms/batch 704.16 | loss  6.34 | ppl   567.781
| epoch   2 step      800 |    300 batches | lr 0 | ms/batch 669.19 | loss  6.06 | ppl   428.925
{DASHES}
| Eval   2 at step      800 | time: 274.67s | valid loss  6.51 | valid ppl   671.826
{DASHES}
{DASHES}
End of training
{RULE}
| End of training | test loss  6.45 | test ppl   632.702
{RULE}
"""
MEGATRON = f"""\
using world size: 8, data-parallel-size: 8, tensor-model-parallel size: 1, pipeline-model-parallel size: 1
------------------------ arguments ------------------------
  adam_beta1 ...................................... 0.9
  lr .............................................. 0.0025
  train_data_path ................................. None
-------------------- end of arguments ---------------------
 > number of parameters on (tensor, pipeline) model parallel rank (0, 0): 354871296
time (ms) | model-and-optimizer-setup: 512.20 | train/valid/test-data-iterators-setup: 100.10
 iteration       10/     100 | consumed samples:         4000 | elapsed time per iteration (ms): 1500.2 | learning \
rate: 6.250E-06 | global batch size:   400 | loss scale: 65536.0 | number of skipped iterations:  10 | number of nan \
iterations:   0 |
 iteration       20/     100 | consumed samples:         8000 | elapsed time per iteration (ms): 1400.5 | learning \
rate: 1.250E-05 | global batch size:   400 | lm loss: 1.050000E+01 | loss scale: 32768.0 | grad norm: 5.125 | number \
of skipped iterations:   1 | number of nan iterations:   0 |
{DASHES}
 validation loss at iteration 20 | lm loss value: 9.750000E+00 | lm loss PPL: 1.715423E+04 |\N{SPACE}
{DASHES}
  successfully saved checkpoint at iteration      20 to checkpoints
 iteration       30/     100 | lm loss: 9.500000E+00 | learning rate: 1.875E-05 |
"""
GPT_ARGS = """\
--num-layers 24
--lr 0.0025
--train-iters 150000
--weight-decay .05
--optimizer adan
--fp16
"""

LOGS = {  # name: format, content
    "timm": ("timm", TIMM),
    "mae": ("mae", MAE),
    "mae fine-tuning": ("mae", MAE_FINETUNING),
    "fairseq": ("fairseq", FAIRSEQ),
    "fairseq resumed": ("fairseq", FAIRSEQ_RESUMED),
    "transformer_xl": ("transformer_xl", TRANSFORMER_XL),
    "megatron": ("megatron", MEGATRON),
}


@dataclass
class Folder:
    """Where samples are written to be read."""

    path: Path

    def write(self, content: str | bytes, name: str = "log") -> Path:
        path = self.path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def parse(self, format: str, content: str | bytes) -> Log:
        """Read with a given reader, without recognising the format."""
        return FORMATS[format].read(Source(self.write(content)))


def accounted(log: Log) -> bool:
    """Whether every line of the log's files became a record, was passed over or is a fault."""
    lines = sum(len(Source(path).lines) for path in log.paths)
    parts = log.lines["record"] + log.lines["other"] + log.lines["fault"]
    records = len(log.table) + log.repeated
    joined = log.format in ("csv", "jsonl") and records < log.lines["record"]  # lines of one position
    return lines == parts == sum(log.lines.values()) and (joined or records == log.lines["record"])
