"""The values of a label map."""

IGNORE = 255  # a pixel of which nothing is known: it counts in no loss and in no score
