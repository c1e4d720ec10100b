"""A reasoning model of a few million parameters, in Magistral's own file format.

The model thinks in `[THINK]…[/THINK]`, reads images, and is small enough for a laptop's CPU. A job that runs with it
runs unchanged with Magistral Small.

Imports within: model, wording < receipts, tokenizer < checkpoint, documents, tasks < batches < train < evaluate.
"""
