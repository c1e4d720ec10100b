"""The commands, one module for each family of them.

Imports within: options, show < bench, deploy, failed, remote, target < output, run < schedule < app.
"""
