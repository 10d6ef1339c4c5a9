"""Examples; nothing in Tandem imports them."""
