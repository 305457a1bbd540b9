"""The renderers of a report: HTML, terminal text and Markdown."""
