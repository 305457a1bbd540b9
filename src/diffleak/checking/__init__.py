"""The command that looks at both sides before an audit."""
