"""Adam, its states in 32, 16 or 8 bits, and the stepper that trains with it."""
