"""Schedules: each tick is one run into a dated output, and no input file is in two runs.

Imports within: look, process, results, specs, taken, ticks < history, scheduled, timing < folder, tick < listing,
scheduler.
"""
