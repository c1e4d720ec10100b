"""What is told about a job: progress, metrics, the report and its page.

Imports within: metrics, metrics_server, runs, texts < progress, wrong < exporter, heartbeat, report < page < stored <
accounts.
"""
