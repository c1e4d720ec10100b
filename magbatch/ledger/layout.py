"""Paths below an output that more than one module knows."""

SPEC = "_magbatch/spec.yaml"
PLAN = "_magbatch/plan.parquet"
REPORT = "_magbatch/report.json"
PAGE = "_magbatch/report.html"
RECORD = "_magbatch/progress.json"
MANIFEST = "_magbatch/manifest.json"
SUPERSEDED = "_magbatch/superseded"
RETRIES = "_magbatch/retries"
STAGED = "_magbatch/staged/"
LOGS = "_magbatch/logs/"
# The job's own files that a manifest names with their checksums, in this order.
NAMED_FILES = (SPEC, PLAN, REPORT, PAGE)
