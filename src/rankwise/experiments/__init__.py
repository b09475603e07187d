"""Run configs, the runner, the store, statistics, tables and plots."""
