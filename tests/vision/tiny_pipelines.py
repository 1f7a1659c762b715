"""Tiny models with random weights, in the layouts of diffusers and transformers."""

from pathlib import Path
from typing import Any

import diffusers
import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTextModel,
)

from vision.train_prior import make_tokenizer


def network(**options: Any) -> Any:
    """A UNet of two levels for samples of 8 x 8."""
    shape = dict(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=16, attention_head_dim=2,
    )  # fmt: skip
    return diffusers.UNet2DConditionModel(**(shape | options))


def parts(prediction: str = "epsilon", unet: dict[str, Any] | None = None) -> dict[str, Any]:
    """The parts of a tiny Stable Diffusion: latents of 8 x 8 for images of 16 x 16."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(12)
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16), norm_num_groups=4, sample_size=16,
    )  # fmt: skip
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=12,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    scheduler = diffusers.PNDMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=prediction,
        skip_prk_steps=True, steps_offset=1,
    )  # fmt: skip
    return dict(
        unet=network(**(unet or {})), vae=vae, text_encoder=CLIPTextModel(text).eval(), tokenizer=tokenizer,
        scheduler=scheduler,
    )  # fmt: skip


def stable_diffusion(folder: Path, prediction: str = "epsilon", unet: dict[str, Any] | None = None) -> Any:
    """diffusers' own pipeline of these parts, saved in the folder."""
    pipeline = diffusers.StableDiffusionPipeline(
        **parts(prediction, unet), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    return pipeline


def clip(folder: Path) -> None:
    """A CLIP for images of 16 x 16 and texts of 12 tokens, saved in the folder."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(12)
    shape: dict[str, Any] = dict(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    text = shape | dict(
        vocab_size=len(tokenizer), max_position_embeddings=12, eos_token_id=tokenizer.eos_token_id
    )
    seen = shape | dict(image_size=16, patch_size=8)
    CLIPModel(CLIPConfig(text_config=text, vision_config=seen, projection_dim=8)).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
