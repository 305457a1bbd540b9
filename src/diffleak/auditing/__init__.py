"""`diffleak audit`, `geometry`, `metrics` and `selfcheck`: plan, inputs, scores, evaluation, report."""
