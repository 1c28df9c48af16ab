"""The trainer's commands, one file each. Nothing heavy is imported before the arguments are known to be sound."""
