"""Images that are carried across an air gap: written to media, and taken from them."""
