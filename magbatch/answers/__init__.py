"""Answers read into columns: typed values by a JSON Schema, an extracted text, and a vote over samples.

Imports within: exact, formats < columns, fits, grading < reader < checker.
"""

from magbatch.answers.checker import Checker
from magbatch.answers.reader import Reader, Reading, SchemaReader, boxed, made_columns

__all__ = ["Checker", "Reader", "Reading", "SchemaReader", "boxed", "made_columns"]
