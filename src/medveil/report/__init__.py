"""One self-contained HTML page that a hospital's board and its physicists can both read."""
