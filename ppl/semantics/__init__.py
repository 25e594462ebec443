"""What programs mean: interpreters, representations, and the maps between them."""
