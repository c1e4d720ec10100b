"""Reports about a job: the progress line, metrics, the run's own record and log, and the final report with its page.

Imports within: beat, history, metrics, metrics_server, record, texts, usage < runs < progress, scan, wrong <
terminal, exporter, heartbeat, report < log, page < stored < accounts.
"""
