"""Transformer-XL (Dai et al., arXiv 1901.02860): segments of text with a memory of those before."""

from nlp.transformer_xl.model import Memory, Reach, TransformerXL, empty_memory

__all__ = ["Memory", "Reach", "TransformerXL", "empty_memory"]
