"""What models are worth and what they cost, side by side: `lorashear eval`."""
