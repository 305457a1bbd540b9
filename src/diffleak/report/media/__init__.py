"""How the sections of a report are rendered: as HTML, as terminal text and as Markdown."""
