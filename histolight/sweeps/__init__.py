"""Many trainings: points, their folders, and how they are continued."""
