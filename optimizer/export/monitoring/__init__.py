"""What is watched in production: live figures beside those that were measured."""
