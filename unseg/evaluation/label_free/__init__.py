"""Quality without labels."""
