"""The sections of the page on prompts."""
