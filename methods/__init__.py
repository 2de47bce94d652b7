"""Stage 3: what ASDA and the compared methods have in common, and the steps of the compared ones."""
