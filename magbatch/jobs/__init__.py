"""The use cases, one file each: run, retry, compact, preview, status. The other files hold what several of them need.

Imports within: choice, compact, early_end, limit, opening, samples, status, steps < complete, preview,
replacement < retry, run.
"""
