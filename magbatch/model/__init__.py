"""The model: its files, its version, its tokenizer."""
