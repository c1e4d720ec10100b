"""Ray, and nothing but Ray: where replicas run, and what feeds them.

Imports within: board, devices, placement, pool, ray_auth, sharing, vital, worker < supervise < cluster.
"""
