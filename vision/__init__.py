"""Image classification with timm's models."""
