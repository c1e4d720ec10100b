"""One engine and the rows of many shards inside it at once.

Imports within: admission, in_flight, losses, watchdog < board, preemption < announced, commits < replica.
"""
