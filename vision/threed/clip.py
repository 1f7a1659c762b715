"""How well images fit captions, as CLIP sees it: for R-precision as it is published (arXiv 2209.14988)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

from repro.errors import UserError
from vision.threed.pretrained import place_of, reading, whole


@torch.no_grad()
def similarity(
    images: Tensor,
    captions: Sequence[str],
    model: str,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
) -> Tensor:
    """Return the cosine similarity of each image to each caption [images, captions], float32 on the CPU.

    Args:
        images: [images, 3, h, w] in 0..1; resized, cropped and normalised as the model wants them.
        captions: distractors among them.
        model: a folder or a name on the Hugging Face hub. DreamFusion reports openai/clip-vit-base-patch32,
            openai/clip-vit-base-patch16 and openai/clip-vit-large-patch14.
        device: where it computes.
        batch_size: images and captions at a time.

    Raises:
        UserError: the model is not there or of another kind, or a caption is too long for it.
    """
    place, local = place_of(model)
    with reading(model, local, "a CLIPModel and its CLIPProcessor"):
        clip = whole(CLIPModel.from_pretrained(place, output_loading_info=True))
        processor: Any = CLIPProcessor.from_pretrained(place)
    clip.eval().to(device)
    length = clip.config.text_config.max_position_embeddings
    for caption in captions:
        if (tokens := len(processor.tokenizer(caption, verbose=False).input_ids)) > length:
            raise UserError(f"caption={caption!r}: has {tokens} tokens, {model} reads {length}")

    def seen(part: Tensor) -> Tensor:
        pixels = processor.image_processor(list(part), do_rescale=False, return_tensors="pt")
        return clip.get_image_features(**pixels.to(device)).pooler_output

    def read(part: list[str]) -> Tensor:
        tokens = processor.tokenizer(part, padding=True, return_tensors="pt")
        return clip.get_text_features(**tokens.to(device)).pooler_output

    every = range(0, max(len(images), len(captions)), batch_size)
    pictures = torch.cat([seen(images[at : at + batch_size]) for at in every if at < len(images)])
    words = torch.cat([read(list(captions[at : at + batch_size])) for at in every if at < len(captions)])
    pictures, words = (x / x.norm(dim=-1, keepdim=True) for x in (pictures, words))
    return (pictures @ words.T).cpu()
