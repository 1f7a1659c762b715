"""Text-to-image models in diffusers' layout: Stable Diffusion, and what vision/train_prior.py has trained."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from accelerate import cpu_offload
from huggingface_hub import snapshot_download
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from repro.errors import UserError
from vision.threed.cameras import Cameras, words
from vision.threed.pretrained import library, place_of, reading, whole
from vision.threed.prior import Prior

# The classes of the parts that work; of diffusers' parts one, of transformers' also its older name.
PARTS = {
    "unet": ("UNet2DConditionModel",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "vae": ("AutoencoderKL",),
}
# On the hub next to those of other formats and precisions
FILES = [
    *("unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"),
    *("text_encoder/model.safetensors", "*.json", "*.txt"),
]
UNUSED = ("safety_checker", "feature_extractor")
WORKS = (
    "what works has one UNet2DConditionModel, CLIPTextModel and CLIPTokenizer, and an AutoencoderKL or "
    "pixels to work on, as Stable Diffusion 1 and 2 and runs of vision/train_prior.py"
)
FEATURES = 4  # of a camera


def features(cameras: Cameras) -> Tensor:
    """Return what a UNet is told of cameras [cameras, FEATURES]: azimuth, elevation, and 1 for known."""
    azimuth, elevation = cameras.azimuth, cameras.elevation
    known = torch.ones_like(azimuth)
    return torch.stack([azimuth.sin(), azimuth.cos(), elevation.sin(), known], -1)


def texts(captions: Sequence[str], cameras: Cameras | None) -> list[str]:
    """Return the captions with the words of their views; no caption stays none."""
    if cameras is None:
        return list(captions)
    return [caption and f"{caption}, {view}" for caption, view in zip(captions, words(cameras), strict=True)]


class Diffusion(Prior):
    """A pre-trained text-to-image model; nothing in it is trained.

    Args:
        unet: diffusers' UNet2DConditionModel. With class_embed_type="projection" it is told `features`.
        text_encoder, tokenizer: transformers' CLIPTextModel and CLIPTokenizer.
        scheduler: diffusers' DDPMScheduler, for the noise schedule and what the UNet predicts.
        vae: diffusers' AutoencoderKL; None: the UNet works on pixels.
        name: for errors.
    """

    def __init__(
        self, unet: Any, text_encoder: Any, tokenizer: Any, scheduler: Any, vae: Any = None, name: str = ""
    ) -> None:
        super().__init__()
        self.unet, self.text_encoder, self.vae = unet, text_encoder, vae
        self.tokenizer, self.scheduler, self.name = tokenizer, scheduler, name
        self.register_buffer("alphas", scheduler.alphas_cumprod.clone())
        self.side: int = unet.config.sample_size
        if vae is not None:
            self.side *= 2 ** (len(vae.config.block_out_channels) - 1)
        self.embedded: dict[str, Tensor] = {}  # each text [tokens, width]
        self.requires_grad_(False).eval()

    @classmethod
    def load(
        cls,
        name: str,
        *,
        dtype: str = "float32",
        device: torch.device | str = "cpu",
        attention_slicing: bool = False,
        vae_slicing: bool = False,
        sequential_cpu_offload: bool = False,
    ) -> "Diffusion":
        """Return the model in a folder, or on the Hugging Face hub.

        The last three save memory at the cost of time, as the methods of diffusers' pipelines do that are
        called enable_*.

        Args:
            name: of the folder, which has a model_index.json, or on the hub.
            dtype: of weights and computation, by its name in torch; what goes in and comes out is float32.
            device: where it computes.
            attention_slicing: the UNet attends in two steps.
            vae_slicing: images are encoded one by one.
            sequential_cpu_offload: the weights of each layer are on the device only while it computes.

        Raises:
            UserError: diffusers is not installed, the model is not there, or is of another kind.
        """
        diffusers = library()
        place, local = place_of(name)
        with reading(name, local, "model_index.json"):
            place = place if local else snapshot_download(name, allow_patterns="model_index.json")
            index = diffusers.DiffusionPipeline.load_config(place)
        check_kind(name, index, {each.name for each in diffusers.schedulers.KarrasDiffusionSchedulers})
        if not local:
            with reading(name, local, "its parts"):
                snapshot_download(name, allow_patterns=FILES)

        def part(kind: Any, folder: str, **options: Any) -> Any:
            with reading(name, local, f"{folder}/ ({kind.__name__})"):
                return kind.from_pretrained(place, subfolder=folder, **options)

        def network(kind: Any, folder: str, **options: Any) -> Any:
            with reading(name, local, f"{folder}/ ({kind.__name__})"):
                return whole(
                    kind.from_pretrained(
                        place, subfolder=folder, use_safetensors=True, output_loading_info=True, **options
                    )
                )

        precision = getattr(torch, dtype)
        prior = cls(
            network(diffusers.UNet2DConditionModel, "unet", torch_dtype=precision),
            network(CLIPTextModel, "text_encoder", dtype=precision),
            part(CLIPTokenizer, "tokenizer"),
            part(diffusers.DDPMScheduler, "scheduler"),
            network(diffusers.AutoencoderKL, "vae", torch_dtype=precision) if has(index, "vae") else None,
            name,
        )
        check_shapes(prior)
        if attention_slicing:
            prior.unet.set_attention_slice("auto")
        if vae_slicing and prior.vae is not None:
            prior.vae.enable_slicing()
        if not sequential_cpu_offload:
            return prior.to(device)
        prior.alphas = prior.alphas.to(device)
        for module in (prior.unet, prior.text_encoder, prior.vae):
            if module is not None:
                cpu_offload(module, torch.device(device))
        return prior

    def encode(self, images: Tensor) -> Tensor:
        """Return images [n, 3, h, w] in 0..1 as samples of the UNet's space, with their gradient.

        These are pixels in -1..1, or latents [n, channels, side, side]. Latents are drawn from the
        autoencoder's distribution, as in the training of Stable Diffusion and in stable-dreamfusion.
        """
        resized = F.interpolate(images, (self.side, self.side), mode="bilinear", antialias=True)
        pixels = super().encode(resized)
        if self.vae is None:
            return pixels
        latents = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist.sample()
        return latents.float() * self.vae.config.scaling_factor

    def latents(self, pixels: Tensor) -> Tensor:
        """Return pictures [n, channels, h, w] as samples without the autoencoder, resized.

        Raises:
            UserError: they have other channels than the samples.
        """
        config = self.unet.config
        if pixels.shape[1] != config.in_channels:
            raise UserError(
                f"{self.name}: has latents of {config.in_channels} channels, for which normals and opacity, "
                f"{pixels.shape[1]} channels, cannot stand; set view.normals=0"
            )
        return F.interpolate(pixels, (config.sample_size,) * 2, mode="bilinear", antialias=True)

    def decode(self, samples: Tensor) -> Tensor:
        """Return samples as images [n, 3, side, side] in 0..1."""
        if self.vae is not None:
            samples = self.vae.decode((samples / self.vae.config.scaling_factor).to(self.vae.dtype)).sample
        return (samples.float() / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def noise(self, noisy: Tensor, times: Tensor, captions: Sequence[str], cameras: Cameras | None) -> Tensor:
        """Return the noise that the UNet finds in noisy samples; see Prior.

        The view is told by words after the caption and, if the UNet takes them, by the camera's features.
        """
        told = None
        if self.unet.config.class_embed_type is not None:
            told = noisy.new_zeros(len(noisy), FEATURES)
            if cameras is not None:
                given = torch.tensor([[caption != ""] for caption in captions], device=noisy.device)
                told = features(cameras).to(noisy) * given
            told = told.to(self.unet.dtype)
        text = self.embed(texts(captions, cameras)).to(noisy.device)
        found = self.unet(noisy.to(self.unet.dtype), times, text, class_labels=told).sample.float()
        alphas = self.alphas[times].view(-1, 1, 1, 1)
        match self.scheduler.config.prediction_type:
            case "sample":
                return (noisy - alphas.sqrt() * found) / (1 - alphas).sqrt()
            case "v_prediction":  # arXiv 2202.00512, appendix D
                return alphas.sqrt() * found + (1 - alphas).sqrt() * noisy
        return found

    @torch.no_grad()
    def embed(self, wanted: Sequence[str]) -> Tensor:
        """Return what the text encoder makes of texts [texts, tokens, width]; it reads each only once.

        Raises:
            UserError: a text is too long.
        """
        new = [text for text in dict.fromkeys(wanted) if text not in self.embedded]
        if new:
            length = self.tokenizer.model_max_length
            for text in new:
                if (tokens := len(self.tokenizer(text, verbose=False).input_ids)) > length:
                    raise UserError(f"prompt={text!r}: has {tokens} tokens, {self.name} reads {length}")
            ids = self.tokenizer(new, padding="max_length", return_tensors="pt").input_ids
            read = self.text_encoder(ids.to(self.alphas.device)).last_hidden_state
            self.embedded |= dict(zip(new, read, strict=True))
        return torch.stack([self.embedded[text] for text in wanted])

    @torch.no_grad()
    def sample(
        self, captions: Sequence[str], cameras: Cameras | None, guidance: float, steps: int = 50
    ) -> Tensor:
        """Return images of captions [captions, 3, side, side] in 0..1, by DDIM (arXiv 2010.02502).

        Args:
            captions, cameras, guidance: see Prior.guided.
            steps: of DDIM.
        """
        sampler = library().DDIMScheduler.from_config(self.scheduler.config, prediction_type="epsilon")
        sampler.set_timesteps(steps)
        config, device = self.unet.config, self.alphas.device
        samples = torch.randn(len(captions), config.in_channels, *[config.sample_size] * 2, device=device)
        for time in sampler.timesteps:
            times = time.to(device).expand(len(captions))
            noise = self.guided(samples, times, captions, cameras, guidance)
            samples = sampler.step(noise, int(time), samples, use_clipped_model_output=True).prev_sample
        return self.decode(samples)


def has(index: dict[str, Any], part: str) -> bool:
    """Tell whether a model_index.json names a part."""
    entry = index.get(part)
    return isinstance(entry, list | tuple) and len(entry) == 2 and entry[1] is not None


def check_kind(name: str, index: dict[str, Any], schedulers: set[str]) -> None:
    """Check the parts that a model_index.json names.

    Args:
        schedulers: classes whose configurations DDPMScheduler understands.

    Raises:
        UserError: a part is missing, of another class, or unknown.
    """
    kinds = {part: index[part][1] for part in index if has(index, part) and part not in UNUSED}
    expected = {**PARTS, "scheduler": tuple(sorted(schedulers))}
    kind = f"{name}: is a {index.get('_class_name')}"
    for part, found in kinds.items():
        if found not in expected.get(part, ()):
            raise UserError(f"{kind} with {part}={found}; {WORKS}")
    for part in expected:
        if part not in kinds and part != "vae":
            raise UserError(f"{kind} without {part}; {WORKS}")


def check_shapes(prior: Diffusion) -> None:
    """Check that a UNet takes what it is given here.

    Raises:
        UserError: it needs more, or its parts do not fit each other.
    """
    config, text = prior.unet.config, prior.text_encoder.config
    channels = 3 if prior.vae is None else prior.vae.config.latent_channels
    needed: dict[str, tuple[Any, ...]] = {
        "in_channels": (channels,),
        "out_channels": (channels,),
        "cross_attention_dim": (text.hidden_size,),
        "addition_embed_type": (None, "text"),
        "encoder_hid_dim_type": (None,),
        "class_embed_type": (None, "projection"),
    }
    if config.class_embed_type == "projection":
        needed["projection_class_embeddings_input_dim"] = (FEATURES,)
    found = {key: config[key] for key in needed}
    if not isinstance(config.sample_size, int):
        found, needed = {"sample_size": config.sample_size}, {"sample_size": ("one number",)}
    for key, values in needed.items():
        if found[key] not in values:
            wanted = " or ".join(map(str, values))
            raise UserError(f"{prior.name}: its UNet has {key}={found[key]}, not {wanted}; {WORKS}")
    if (kind := prior.scheduler.config.prediction_type) not in ("epsilon", "v_prediction", "sample"):
        raise UserError(f"{prior.name}: predicts {kind}, not epsilon, v_prediction or sample")


class Cost(NamedTuple):
    """What score distillation takes, for one rendering and step.

    encode: operations from the rendering to latents, and of the gradient back.
    denoise: operations of the UNet, with and without the caption.
    weights: bytes of parameters and buffers in float16, by part.
    """

    encode: int
    denoise: int
    weights: dict[str, int]


def paper_scale() -> Cost:
    """Return what a step with Stable Diffusion 2.1 takes, counted on models without memory.

    A multiplication and an addition are two operations; what is not a matrix product or convolution is left
    out. The text is encoded before the first step.
    """
    with torch.device("meta"):
        prior = untrained()
        images = torch.empty(1, 3, 64, 64, requires_grad=True)
        with FlopCounterMode(display=False) as encode:
            latents = prior.encode(images)
            latents.backward(torch.empty_like(latents))
        with FlopCounterMode(display=False) as denoise, torch.no_grad():
            prior.unet(latents.detach().expand(2, -1, -1, -1), torch.empty(2), torch.empty(2, 77, 1024))
    parts = {"unet": prior.unet, "vae": prior.vae, "text_encoder": prior.text_encoder}
    weights = {
        name: sum(x.nbytes for x in [*part.half().parameters(), *part.buffers()])
        for name, part in parts.items()
    }
    return Cost(encode.get_total_flops(), denoise.get_total_flops(), weights)


def untrained() -> Diffusion:
    """Return a model of Stable Diffusion 2.1's size, without training and without a tokenizer."""
    diffusers = library()
    unet = diffusers.UNet2DConditionModel(
        sample_size=64,
        attention_head_dim=[5, 10, 20, 20],
        cross_attention_dim=1024,
        use_linear_projection=True,
    )
    vae = diffusers.AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[128, 256, 512, 512],
        layers_per_block=2,
    )
    text = CLIPTextConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16
    )
    return Diffusion(unet, CLIPTextModel(text), None, diffusers.DDPMScheduler(), vae)
