"""The use cases, one file each: run, retry, compact, preview, status. The other files hold what several of them need.

Imports within: choice, compact, early_end, limit, opening, report_of_run, samples, status, steps < preview,
replacement, serving < complete < retry, run.
"""
