"""Masked autoencoders (He et al., arXiv 2111.06377) around timm's vision transformers.

The state dict has the names of the official code, so its checkpoints load unchanged: the encoder's names are
those of timm's vision transformer without a head, and all others are `mask_token` or begin with `decoder_`.
"""

import torch
from timm.layers import PatchEmbed
from timm.models import checkpoint_seq
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from repro.errors import UserError


class MaskedAutoencoder(nn.Module):
    """Predicts the pixels of an image's hidden patches from its visible ones.

    The encoder processes only the visible patches; the decoder stands one learned token in for each hidden
    one. Position embeddings are fixed, hence buffers. The weights are initialised as in the official code.

    Args:
        encoder: a timm vision transformer that cuts images into plain patches. Its modules become this
            model's and are initialised again; its pooling and head are unused.
        embed_dim, depth, num_heads: of the decoder, whose MLPs are four times as wide.
        mask_ratio: share of the patches that are hidden.
        norm_pixels: predict pixels normalised by the mean and standard deviation of their patch.

    Raises:
        UserError: the encoder is of another kind, or the sizes do not fit.
    """

    pos_embed: Tensor
    decoder_pos_embed: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        embed_dim: int = 512,
        depth: int = 8,
        num_heads: int = 16,
        mask_ratio: float = 0.75,
        norm_pixels: bool = True,
    ) -> None:
        super().__init__()
        if type(encoder) is not VisionTransformer or type(encoder.patch_embed) is not PatchEmbed:
            raise UserError(
                "a masked autoencoder needs a vision transformer of plain patches as its encoder, such as "
                f"model=vit_small, not timm's {type(encoder).__name__}"
            )
        if encoder.pos_embed is None or encoder.dynamic_img_size:
            raise UserError("model.kwargs: the encoder needs position embeddings and one size of images")
        patches, width = encoder.patch_embed, encoder.embed_dim
        self.grid, self.patch_size = patches.grid_size, patches.patch_size
        self.channels: int = patches.proj.in_channels
        self.num_patches: int = patches.num_patches
        self.visible = int(self.num_patches * (1 - mask_ratio))
        if any(side % patch for side, patch in zip(patches.img_size, self.patch_size, strict=True)):
            size, side = self.patch_size[0], patches.img_size[0]
            raise UserError(f"model.kwargs.patch_size={size}: does not divide the image's side, {side}")
        if not 0 < self.visible < self.num_patches:
            shows = f"shows {self.visible} of {self.num_patches} patches"
            raise UserError(f"model.mask_ratio={mask_ratio}: {shows}; some must be seen, and some must not")
        if embed_dim % num_heads:
            raise UserError(f"model.decoder.num_heads={num_heads}: must divide embed_dim={embed_dim}")
        self.norm_pixels = norm_pixels
        self.grad_checkpointing = False

        self.patch_embed = patches
        self.cls_token, self.reg_token = encoder.cls_token, encoder.reg_token
        self.prefix: int = encoder.num_prefix_tokens  # tokens before those of patches
        embedded = 0 if encoder.no_embed_class else self.prefix
        self.register_buffer("pos_embed", sine_cosine(self.grid, width, embedded))
        self.norm_pre, self.blocks = encoder.norm_pre, encoder.blocks
        # with average pooling timm has the last norm under the name fc_norm
        self.norm = encoder.fc_norm if isinstance(encoder.norm, nn.Identity) else encoder.norm

        self.decoder_embed = nn.Linear(width, embed_dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.register_buffer("decoder_pos_embed", sine_cosine(self.grid, embed_dim, self.prefix))
        self.decoder_blocks = nn.Sequential(
            *(Block(embed_dim, num_heads, qkv_bias=True) for _ in range(depth))
        )
        self.decoder_norm = nn.LayerNorm(embed_dim, eps=1e-6)
        pixels = self.patch_size[0] * self.patch_size[1] * self.channels
        self.decoder_pred = nn.Linear(embed_dim, pixels)
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.data.flatten(1))  # a view, as of a linear layer
        for token in (self.cls_token, self.reg_token, self.mask_token):
            if token is not None:
                nn.init.normal_(token, std=0.02)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the activations of the blocks in the backward pass instead of keeping them."""
        self.grad_checkpointing = enable

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return each image's mean squared error over its hidden patches [batch], in the images' dtype.

        Args:
            images: [batch, channels, height, width].
            noise: [batch, patches]; the patches with the smallest values are visible. None draws it.
        """
        prediction, hidden = self.predict(images, noise)
        target, _, _ = self.target(images)
        error = (prediction.to(target.dtype) - target).square().mean(2)
        return (error * hidden).sum(1) / hidden.sum(1)

    def predict(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return predictions [batch, patches, pixels] and a mask [batch, patches], True at hidden patches."""
        if noise is None:
            noise = torch.rand(len(images), self.num_patches, device=images.device)
        order = noise.argsort(1)
        place = order.argsort(1)  # rank of each patch
        return self.decode(self.encode(images, order[:, : self.visible]), place), place >= self.visible

    def encode(self, images: Tensor, seen: Tensor) -> Tensor:
        """Return the tokens [batch, prefix + visible, width] of the patches `seen` [batch, visible]."""
        x = self.patch_embed(images) + self.pos_embed[:, -self.num_patches :]
        x = x.gather(1, seen[..., None].expand(-1, -1, x.shape[2]))
        tokens: list[Tensor] = [token for token in (self.cls_token, self.reg_token) if token is not None]
        if tokens:
            prefix = torch.cat(tokens, 1)
            if self.pos_embed.shape[1] > self.num_patches:
                prefix = prefix + self.pos_embed[:, : -self.num_patches]
            x = torch.cat([prefix.expand(len(x), -1, -1), x], 1)
        return self.norm(self._run(self.blocks, self.norm_pre(x)))

    def decode(self, x: Tensor, place: Tensor) -> Tensor:
        """Return predictions [batch, patches, pixels].

        Args:
            x: the encoder's tokens [batch, prefix + visible, width].
            place: rank of each patch's noise [batch, patches].
        """
        x = self.decoder_embed(x)
        prefix, patches = x[:, : self.prefix], x[:, self.prefix :]
        hidden = self.mask_token.expand(len(x), self.num_patches - self.visible, -1)
        patches = torch.cat([patches, hidden], 1)
        patches = patches.gather(1, place[..., None].expand(-1, -1, patches.shape[2]))
        x = torch.cat([prefix, patches], 1) + self.decoder_pos_embed
        x = self._run(self.decoder_blocks, x)
        return self.decoder_pred(self.decoder_norm(x))[:, self.prefix :]

    def _run(self, blocks: nn.Sequential, x: Tensor) -> Tensor:
        return checkpoint_seq(blocks, x) if self.grad_checkpointing else blocks(x)

    def target(self, images: Tensor) -> tuple[Tensor, Tensor | float, Tensor | float]:
        """Return the targets [batch, patches, pixels], and the mean and deviation of their normalisation.

        The latter are [batch, patches, 1], or 0 and 1 without `norm_pixels`.
        """
        pixels = self.patchify(images)
        if not self.norm_pixels:
            return pixels, 0.0, 1.0
        mean = pixels.mean(2, keepdim=True)
        deviation = (pixels.var(2, keepdim=True) + 1e-6).sqrt()
        return (pixels - mean) / deviation, mean, deviation

    def reconstruct(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the images with their hidden patches as predicted, and with zeros in their place.

        Both have the shape of `images`. With `norm_pixels`, the mean and the deviation of a hidden patch come
        from the image, as the model does not predict them.
        """
        prediction, hidden = self.predict(images, noise)
        _, mean, deviation = self.target(images)
        pixels = self.patchify(images)
        filled = torch.where(hidden[..., None], prediction * deviation + mean, pixels)
        return self.unpatchify(filled), self.unpatchify(pixels * ~hidden[..., None])

    def patchify(self, images: Tensor) -> Tensor:
        """Return [batch, patches, pixels], with patches and pixels in row-major order, channels last."""
        (rows, columns), (height, width) = self.grid, self.patch_size
        x = images.reshape(len(images), self.channels, rows, height, columns, width)
        return x.permute(0, 2, 4, 3, 5, 1).reshape(len(images), self.num_patches, -1)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """Return the images [batch, channels, height, width] of patches [batch, patches, pixels]."""
        (rows, columns), (height, width) = self.grid, self.patch_size
        x = patches.reshape(len(patches), rows, columns, height, width, self.channels)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(
            len(patches), self.channels, rows * height, columns * width
        )


def sine_cosine(grid: tuple[int, int], width: int, zeros: int) -> Tensor:
    """Return fixed position embeddings [1, zeros + patches, width] of a grid of rows and columns.

    The first half of the width encodes the column, the second the row, as in the official code (which names
    them the other way round). Each half has sines, then cosines, of falling frequency. The first `zeros`
    positions are 0.

    Raises:
        UserError: the width is not divisible by 4.
    """
    if width % 4:
        raise UserError(f"embed_dim={width}: must be divisible by 4 for sine-cosine position embeddings")
    frequency = 10000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    rows, columns = (torch.arange(side, dtype=torch.float64) for side in grid)
    row, column = torch.meshgrid(rows, columns, indexing="ij")
    angles = [place.reshape(-1, 1) * frequency for place in (column, row)]
    embedded = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], 1)
    return torch.cat([torch.zeros(zeros, width), embedded.float()])[None]
