"""HTML page, Markdown tables, and the style that plots share."""
