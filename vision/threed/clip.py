"""How well images fit captions, as CLIP sees it: for R-precision as it is published (arXiv 2209.14988)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

from repro.errors import UserError
from vision.threed.pretrained import place_of, reading, whole


class Clip:
    """A pre-trained CLIP.

    Args:
        model, processor: transformers' CLIPModel and CLIPProcessor.
        name: for errors.
    """

    def __init__(self, model: Any, processor: Any, name: str = "") -> None:
        self.model, self.processor, self.name = model.eval(), processor, name
        self.read: dict[str, Tensor] = {}  # each caption's direction [width]

    @classmethod
    def load(cls, name: str, device: torch.device | str = "cpu") -> "Clip":
        """Return the model in a folder, or on the Hugging Face hub.

        Args:
            name: DreamFusion reports openai/clip-vit-base-patch32, openai/clip-vit-base-patch16 and
                openai/clip-vit-large-patch14.
            device: where it computes.

        Raises:
            UserError: the model is not there, or is of another kind.
        """
        place, local = place_of(name)
        with reading(name, local, "a CLIPModel and its CLIPProcessor"):
            model = whole(CLIPModel.from_pretrained(place, output_loading_info=True))
            return cls(model.to(device), CLIPProcessor.from_pretrained(place), name)

    @torch.no_grad()
    def similarity(self, images: Tensor, captions: Sequence[str], batch_size: int = 64) -> Tensor:
        """Return the cosine similarity of each image to each caption [images, captions], float32.

        Args:
            images: [images, 3, h, w] in 0..1; resized, cropped and normalised as the model wants them.
            captions: distractors among them; the model reads each only once.
            batch_size: images and captions at a time.

        Raises:
            UserError: a caption is too long.
        """
        new = [caption for caption in dict.fromkeys(captions) if caption not in self.read]
        for at in range(0, len(new), batch_size):
            part = new[at : at + batch_size]
            self.read |= dict(zip(part, self._texts(part), strict=True))
        seen = torch.cat([self._images(part) for part in images.split(batch_size)])
        return seen @ torch.stack([self.read[caption] for caption in captions]).T

    def _images(self, images: Tensor) -> Tensor:
        pixels = self.processor.image_processor(list(images), do_rescale=False, return_tensors="pt")
        found = self.model.get_image_features(**pixels.to(self.model.device)).pooler_output
        return torch.nn.functional.normalize(found, dim=-1)

    def _texts(self, captions: list[str]) -> Tensor:
        length = self.model.config.text_config.max_position_embeddings
        for caption in captions:
            if (tokens := len(self.processor.tokenizer(caption, verbose=False).input_ids)) > length:
                raise UserError(f"caption={caption!r}: has {tokens} tokens, {self.name} reads {length}")
        tokens = self.processor.tokenizer(captions, padding=True, return_tensors="pt")
        found = self.model.get_text_features(**tokens.to(self.model.device)).pooler_output
        return torch.nn.functional.normalize(found, dim=-1)
