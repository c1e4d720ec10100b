"""Jobs that run by themselves: each tick one run into a dated output, and no input file in two of them.

Imports within: look, specs, taken, ticks < history < listing, tick < scheduler.
"""
