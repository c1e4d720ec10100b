"""The name of this process' node, for people."""

import socket

import ray


def this_node() -> str:
    """The name of this process' node for people: its host, and its address in the cluster."""
    return f"{socket.gethostname()} ({ray.util.get_node_ip_address()})"
