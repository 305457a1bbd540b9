"""`diffleak compare`: finished audits side by side."""
