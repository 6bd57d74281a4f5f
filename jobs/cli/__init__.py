"""What the commands print: tables, progress, the doctor's findings."""
