"""The host side of results: diagnostics, tables, plots, export, storage and progress."""
