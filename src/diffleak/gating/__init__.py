"""`diffleak gate`: every limit in one place, for audits as they end and for finished folders."""
