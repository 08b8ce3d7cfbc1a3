"""Gates, costs, schedules and losses: torch only, nothing of ESPnet."""
