"""The command that draws who is held out, before a model is trained."""
