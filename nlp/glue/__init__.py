"""GLUE and tasks like it: reading, encoding, metrics, predictions."""
