"""A replica: one engine, and the rows of many shards inside it at once.

Imports within: admission, in_flight, losses, suspects, timing < answering, board, watchdog
< announced, commits, departure, preemption, surroundings < entrance, reports < ending < clock < replica.
"""
