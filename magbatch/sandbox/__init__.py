"""Processes with limits of time and memory: third-party code that touches a row's bytes runs in them.

Imports within: box, seccomp < confine < process.
"""

from magbatch.sandbox.box import Handler, Replies, Reply, Sandbox, Sandboxes

__all__ = ["Handler", "Replies", "Reply", "Sandbox", "Sandboxes"]
