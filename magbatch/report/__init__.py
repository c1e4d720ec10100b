"""What is told about a job: progress, metrics, the report and its page."""
