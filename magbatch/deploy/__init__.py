"""A job spec -> the files that a platform runs it from: devices, replicas and model are written once, in the spec.

Nothing here holds a secret: access comes from the identity of the pods or machines, or from a Secret that is named.

Imports within: forms, text, weights < platform < gpus, names < network, nodes < launcher, pods < kuberay < render.
"""

from magbatch.deploy.platform import RAY_VERSION, SPEC_PATH, Platform, Target
from magbatch.deploy.render import next_commands, notes, render, write

__all__ = ["RAY_VERSION", "SPEC_PATH", "Platform", "Target", "next_commands", "notes", "render", "write"]
