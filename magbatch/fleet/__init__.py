"""Ray, and nothing but Ray: the cluster on which replicas run, and the dataset that feeds them.

Imports within: claim, devices, nodes, observer, ray_settings, silence, slots < board, fair, ray_private, read_task,
worker < placement, pool, ray_auth, sharing, vital < dataset, sharing_client < supervise < cluster.
"""
