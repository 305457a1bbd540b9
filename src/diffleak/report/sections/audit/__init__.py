"""The sections of an audit's report."""
