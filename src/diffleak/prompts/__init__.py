"""`diffleak prompts`: which prompts of a text-to-image model look memorised."""
