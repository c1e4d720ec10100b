"""The model: its files, its version, its tokenizer.

Imports within: checkpoint, tokenizer.
"""
