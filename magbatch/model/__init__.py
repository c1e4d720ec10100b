"""A model: its files and their version, the hub as a source, its tokenizer.

Imports within: facts, files, hub, tokenizer < version < bucket < checkpoint.
"""
