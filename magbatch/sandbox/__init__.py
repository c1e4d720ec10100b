"""Processes that may die: code of others that touches a row's bytes runs here, bounded in time and memory.

Imports within: box, seccomp < confine < process.
"""

from magbatch.sandbox.box import Reply, Sandbox, Sandboxes

__all__ = ["Reply", "Sandbox", "Sandboxes"]
