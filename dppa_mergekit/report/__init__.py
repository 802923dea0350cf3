"""HTML page, Markdown tables, and what plots share."""
