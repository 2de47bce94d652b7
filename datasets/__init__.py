"""Reading, checking and generating image and label folders."""
