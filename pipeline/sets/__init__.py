"""A saved set: folder, seal, digest, load, diff, figures, card."""
