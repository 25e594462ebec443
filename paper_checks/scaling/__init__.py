"""Running sums, line by line, and the methods that are compared on them."""
