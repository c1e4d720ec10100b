"""The commands, one module for each family. The `show` modules do all printing.

Imports within: command_line, deploy_options, options, show < errors, retry_hints, show_bench, show_deploy, show_plan,
show_remote, target < bench, deploy, remote, show_changes, show_run, show_status < run, show_schedule, show_verify
< output, schedule < app.
"""
