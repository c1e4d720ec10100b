"""The steps that a row passes through, one file each; none of them imports another, or Ray.

Imports within: block, context, meter, parse, prompt, read, reading, render, repetition, write
< generate, prepare < answer.
"""
