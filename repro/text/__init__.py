"""Text: where it comes from, how it becomes tokens, and in which pieces a model sees them."""
