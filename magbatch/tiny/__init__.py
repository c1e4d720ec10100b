"""A reasoning model of a few million parameters, in Magistral's own file format.

The model reasons in `[THINK]…[/THINK]`, reads images, and is small enough for a laptop's CPU. A job that runs with it
also runs with Magistral Small, unchanged.

Imports within: model, wording < receipts, tokenizer < checkpoint, documents, tasks < batches < train < evaluate.
"""
