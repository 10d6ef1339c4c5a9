"""What every command does before and around its own work. Nothing slow is imported here."""
