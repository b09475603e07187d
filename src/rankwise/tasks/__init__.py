"""What is learned: one file per family of tasks."""
