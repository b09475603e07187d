"""Where rank goes: signals, schedules, budgets. Pure functions, no modules, no I/O."""
