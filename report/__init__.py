"""A trained model and a domain to scores, tables, figures and report.html."""
