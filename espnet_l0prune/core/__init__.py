"""The core has gates, costs, schedules and losses; it needs torch, but not ESPnet."""
