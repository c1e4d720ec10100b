"""File names of a checkpoint in Mistral's format."""

FILES = ("params.json", "tekken.json", "SYSTEM_PROMPT.txt", "consolidated.safetensors")
