"""A cluster on one machine by Compose."""
