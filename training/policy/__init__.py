"""What is decided once, for every engine: schedules, mixing, parameter groups, stopping."""
