"""The use cases, one file each: what a command does.

Imports within: compact, early_end, opening, status < complete, preview < retry, run.
"""
