"""What is run: scenarios, their stored runs, figures and tables."""
