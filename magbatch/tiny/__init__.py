"""A reasoning model of a few million parameters, in Magistral's own file format.

It thinks in `[THINK]…[/THINK]`, reads images, and is small enough that a laptop's CPU serves it:
what runs here runs unchanged on Magistral Small.

Imports within: model, wording < receipts, tokenizer < checkpoint, documents, tasks < batches < train < evaluate.
"""
