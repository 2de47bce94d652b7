"""What compare.py plans and runs, its statistics, tables and plots."""
