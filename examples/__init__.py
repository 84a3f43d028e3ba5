"""SpeciaRL's reward in other trainers: TRL, verl."""
