"""Very large offline jobs of reasoning models over text and image documents."""

__version__ = "0.2.0"
