"""Rendering of a job spec into the files from which a platform runs it.

Only the spec names devices, replicas and model.

No rendered file holds a secret. Access comes from the identity of pods or machines, or from a Secret that is named.

Imports within: forms, text, weights < platform < gpus, names < network, nodes < launcher, pods < kuberay < render.
"""

from magbatch.deploy.platform import RAY_VERSION, SPEC_PATH, Platform, Target
from magbatch.deploy.render import next_commands, notes, render, write

__all__ = ["RAY_VERSION", "SPEC_PATH", "Platform", "Target", "next_commands", "notes", "render", "write"]
