"""Files that are deployed, and their measured speed."""
