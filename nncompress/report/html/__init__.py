"""One page with all tables and plots."""
