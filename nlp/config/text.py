"""Configuration of where text comes from and how it becomes tokens."""
