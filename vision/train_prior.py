"""Train a small text-to-image model.

    python vision/train_prior.py optimizer=adamw epochs=5
    python vision/train_prior.py 'optimizer.lr_scales={text_encoder:0.3}' guidance=3

Without arguments it learns the pictures of 128 captions, 16 x 16 pixels, in minutes on two CPU cores. The run
folder gets a pipeline/ in diffusers' layout, by which vision/text_to_3d.py can judge its renderings
(prior.path), and a picture of samples.
"""

import sys

from repro.train.command import command
from vision.threed.prior_config import TrainPriorConfig

main = command("train_prior", TrainPriorConfig, "vision.train_prior", __doc__)

if __name__ == "__main__":
    sys.exit(main())  # before the imports that take seconds

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from repro.interop import read_weights
from repro.train.data import Sized
from repro.train.seeding import Draws, hashed, left_alone
from repro.train.task import Task
from vision.threed.cameras import Cameras, drawn, ring
from vision.threed.captions import CAPTIONS
from vision.threed.diffusion import FEATURES, Diffusion, features, texts
from vision.threed.pretrained import library
from vision.threed.prior_config import GROUPS, NetConfig, PicturesConfig
from vision.threed.shapes import render

PIPELINE, PICTURE = "pipeline", "samples.png"
SHOWN = (
    "a red torus",
    "a green mug",
    "a blue chair",
    "a small yellow cone",
    "an orange cube",
    "a cyan pyramid",
)
VIEWS = 4  # of each caption in the picture
TOLD = 0  # column of the draws


class Batch(NamedTuple):
    """Pictures, what the model is told of them, and their numbers.

    images: [batch, 3, size, size]; uint8 as made, float32 in -1..1 once moved.
    tokens: of the caption and the view [batch, tokens], int64.
    views: features of the camera [batch, FEATURES]; 0 if it is not told.
    indices: of the pictures in their set [batch], int64.
    """

    images: Tensor
    tokens: Tensor
    views: Tensor
    indices: Tensor


class Pictures(Dataset[Batch]):
    """Pictures of all captions, each by its own random cameras.

    Args:
        config: the number, size and cameras.
        views: of each caption.
        name: of the random numbers.
        tokenizer: of captions.
        dropout: shares of the pictures of which nothing is told, and of which the caption alone.
    """

    def __init__(
        self, config: PicturesConfig, views: int, name: str, tokenizer: Any, dropout: tuple[float, float]
    ) -> None:
        self.dropout = dropout
        captions = [caption for caption in CAPTIONS for _ in range(views)]
        draws = Draws(name, np.arange(len(captions)))
        ranges = [(values[0], values[1]) for values in (config.elevation, config.radius, config.fov)]
        cameras = drawn(draws, *ranges)
        pictures = render(captions, cameras, config.size)[:, :3]
        self.images = (pictures * 255).round().byte()
        self.features = features(cameras)
        told = [texts(captions, cameras), captions, [""] * len(captions)]
        self.tokens = torch.stack([tokens_of(tokenizer, each) for each in told])  # [3, pictures, tokens]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Batch:
        """Return a picture of which everything is told."""
        picture = torch.tensor(index)
        return Batch(self.images[index], self.tokens[0, index], self.features[index], picture)

    def whole_batch(self, indices: NDArray[np.int64], draws: Draws) -> Batch:
        """Return the pictures at `indices` [batch]; `draws` say what is told of each."""
        at, share = torch.from_numpy(indices), torch.from_numpy(draws([TOLD])[:, 0])
        nothing, alone = self.dropout
        told = torch.where(share < nothing, 2, torch.where(share < nothing + alone, 1, 0))
        views = self.features[at] * (told == 0)[:, None]
        return Batch(self.images[at], self.tokens[told, at], views, at)


class Denoiser(nn.Module):
    """A UNet, and the encoder of the texts that it is told."""

    def __init__(self, config: NetConfig, size: int, tokenizer: Any) -> None:
        super().__init__()
        levels = len(config.channels)
        self.text_encoder: Any = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=config.text_width,
                intermediate_size=4 * config.text_width,
                num_hidden_layers=config.text_layers,
                num_attention_heads=config.heads,
                max_position_embeddings=config.text_tokens,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        )
        self.unet: Any = library().UNet2DConditionModel(
            sample_size=size,
            in_channels=3,
            out_channels=3,
            block_out_channels=config.channels,
            layers_per_block=config.layers,
            down_block_types=["DownBlock2D"] * (levels - 1) + ["CrossAttnDownBlock2D"],
            up_block_types=["CrossAttnUpBlock2D"] + ["UpBlock2D"] * (levels - 1),
            cross_attention_dim=config.text_width,
            attention_head_dim=config.heads,  # diffusers' name for their number
            addition_embed_type="text",  # all levels get a summary of it
            addition_embed_type_num_heads=config.heads,
            norm_num_groups=GROUPS,
            class_embed_type="projection",
            projection_class_embeddings_input_dim=FEATURES,
        )

    def forward(self, noisy: Tensor, times: Tensor, tokens: Tensor, views: Tensor) -> Tensor:
        """Return the velocity of noisy images [batch, 3, size, size] at time steps [batch]; see Batch."""
        text = self.text_encoder(tokens).last_hidden_state
        return self.unet(noisy, times, text, class_labels=views).sample


class TrainPrior(Task[Batch]):
    """Denoising of pictures of simple objects, told their captions and views.

    The model predicts the velocity, sqrt(alpha) noise - sqrt(1 - alpha) picture (arXiv 2202.00512): from the
    noise alone, as in the first steps of sampling, colours would follow only after long training.
    """

    name = "train_prior"
    schema = TrainPriorConfig
    metric = "valid_loss"
    products = (PIPELINE, PICTURE)

    def __init__(self, config: TrainPriorConfig, synthetic: bool = False) -> None:
        self.config = config
        self.model_name = f"UNet {'-'.join(map(str, config.model.channels))}"
        self.tokenizer = make_tokenizer(config.model.text_tokens)
        self.scheduler = library().DDPMScheduler(
            beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"
        )
        self.alphas = self.scheduler.alphas_cumprod

    def train_data(self) -> Sized:
        """Return pictures of all captions."""
        dropout = self.config.caption_dropout, self.config.view_dropout
        return self._pictures(self.config.data.views, "training", dropout)

    def valid_data(self) -> Sized:
        """Return other pictures of all captions, of which everything is told."""
        return self._pictures(self.config.data.valid_views, "validation", (0.0, 0.0))

    def _pictures(self, views: int, which: str, dropout: tuple[float, float]) -> Pictures:
        name = f"pictures {which} {self.config.seed}"
        return Pictures(self.config.data, views, name, self.tokenizer, dropout)

    def build_model(self) -> Denoiser:
        """Return the model with its initial weights."""
        return Denoiser(self.config.model, self.config.data.size, self.tokenizer)

    def move(self, batch: Batch, device: torch.device) -> Batch:
        """Return the batch on the device, its images in -1..1."""
        moved = super().move(batch, device)
        return moved._replace(images=moved.images.float() / 127.5 - 1)

    def synthetic_batch(self, n: int) -> Batch:
        """Return n random pictures with random captions and views."""
        config = self.config
        tokens = torch.randint(len(self.tokenizer), (n, config.model.text_tokens))
        images = torch.randn(n, 3, config.data.size, config.data.size)
        return Batch(images, tokens, torch.randn(n, FEATURES), torch.arange(n))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean squared error of the velocity, a scalar.

        The time steps of a batch are spread evenly over all, from a random first one (arXiv 2107.00630).
        """
        images = batch.images
        first, places = torch.rand((), device=images.device), torch.arange(len(images), device=images.device)
        shares = (first + places) / len(images)
        return self.errors(model, batch, shares, torch.randn_like(images)).mean()

    def evaluate(self, model: nn.Module, batch: Batch) -> tuple[dict[str, Tensor], int]:
        """Return the sum of the pictures' errors, each with the noise and time step of its index."""
        noise, shares = fixed(batch.indices, batch.images)
        return {self.metric: self.errors(model, batch, shares, noise).sum()}, len(shares)

    def errors(self, model: nn.Module, batch: Batch, shares: Tensor, noise: Tensor) -> Tensor:
        """Return the mean squared error of each picture's velocity [batch].

        Args:
            shares: the time steps, as shares of all in [0, 1) [batch].
            noise: as the images.
        """
        times = (shares * len(self.alphas)).long()
        alphas = self.alphas.to(noise.device)[times].view(-1, 1, 1, 1)
        signal, share = alphas.sqrt(), (1 - alphas).sqrt()
        found = model(signal * batch.images + share * noise, times, batch.tokens, batch.views)
        velocity = signal * noise - share * batch.images
        return F.mse_loss(found.float(), velocity, reduction="none").flatten(1).mean(1)

    def finish(self, folder: Path) -> None:
        """Save the pipeline and a picture: captions from all sides, beside the samples of the model."""
        model = self.build_model()
        model.load_state_dict(read_weights(folder)[0])
        place = folder / PIPELINE
        save(model, self.tokenizer, self.scheduler, place)
        prior = Diffusion.load(str(place))
        captions = [caption for caption in SHOWN for _ in range(VIEWS)]
        around = ring(VIEWS, 20.0, self.config.data.radius[0], self.config.data.fov[0])
        cameras = Cameras(*(field.repeat(len(SHOWN)) for field in around))
        truth = render(captions, cameras, self.config.data.size)[:, :3]
        with left_alone():
            torch.manual_seed(hashed(f"samples {self.config.seed}"))
            found = prior.sample(captions, cameras, self.config.guidance, self.config.sample_steps)
        draw(torch.cat([x.unflatten(0, (-1, VIEWS)) for x in (truth, found)], 1), folder / PICTURE)


def draw(views: Tensor, path: Path) -> None:
    """Write the picture of samples.

    Args:
        views: the truth and then the samples of each caption [captions, 2 VIEWS, 3, size, size], in 0..1.
    """
    from repro.plots import save_pictures  # matplotlib takes a second, and is not needed to train

    degrees = [f"{360 * view // VIEWS}°" for view in range(VIEWS)]
    columns = [f"{kind}\n{angle}" for kind in ("truth", "sample") for angle in degrees]
    rows = dict(zip(SHOWN, views.movedim(2, -1), strict=True))
    save_pictures(rows, path, "Do the samples look like their captions, from every side?", columns)


def fixed(indices: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return noise as images [batch, ...], and shares in [0, 1) [batch], that depend on the indices alone."""
    noise, shares = [], []
    for index in indices.tolist():
        generator = torch.Generator().manual_seed(index)
        noise.append(torch.randn(images.shape[1:], generator=generator))
        shares.append(torch.rand((), generator=generator))
    return torch.stack(noise).to(images), torch.stack(shares).to(images)


def make_tokenizer(length: int) -> Any:
    """Return a CLIPTokenizer with a token for each word of captions and views; it spells other words.

    Args:
        length: tokens of a text at most, with one before and one after it.
    """
    azimuth, elevation = torch.tensor([[0.0, 90.0, 180.0, 0.0], [0.0, 0.0, 0.0, 90.0]]).deg2rad()
    seen = Cameras(azimuth, elevation, torch.ones(4), torch.ones(4))
    lines = [text for caption in CAPTIONS for text in texts([caption] * 4, seen)]
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # words and punctuation
    trainer = trainers.BpeTrainer(end_of_word_suffix="</w>", show_progress=False)
    trained.train_from_iterator(lines, trainer)
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    special = ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys([*pieces, *special]))}
    return CLIPTokenizer(vocabulary, merges, model_max_length=length)


def tokens_of(tokenizer: Any, texts: list[str]) -> Tensor:
    """Return the tokens of texts, padded to the longest that there may be [texts, tokens]."""
    return tokenizer(texts, padding="max_length", return_tensors="pt").input_ids


def save(model: Denoiser, tokenizer: Any, scheduler: Any, folder: Path) -> None:
    """Save a pipeline in diffusers' layout."""
    parts = {"unet": model.unet, "text_encoder": model.text_encoder}
    parts |= {"tokenizer": tokenizer, "scheduler": scheduler}
    index: dict[str, Any] = {"_class_name": "TextToPixels", "_diffusers_version": library().__version__}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
        index[name] = [type(part).__module__.partition(".")[0], type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


RECIPE = TrainPrior  # see repro.ledger.recipes
